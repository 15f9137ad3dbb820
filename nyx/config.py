"""The typed configuration: one table of keys, read from TOML, the environment and flags, with every error at once.

A later source wins: built in < file < NYX_SECTION_KEY in the environment < flags. Nothing is guessed: an unknown key, a value
out of range or a combination that cannot work is a problem with its place, and `load` raises one ConfigError with all of them.

Size: the table of keys, what reads their values and what they become stand together: a key is added in one place.
"""

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nyx.errors import ConfigError
from nyx.logline import FORMATS, LEVELS, Style
from nyx.path.policy import RULES_MAX, parse_rule
from nyx.toml import key_lines

PORT_FIRST: Final = 43300
PORT_LAST: Final = 43399
SOCKET_PATH_MAX: Final = 107  # bytes of a unix socket's path (sun_path), without its end
HOPS_PRODUCTION: Final = 3  # fewer hide nothing from the first relay's neighbours: test networks only


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """[node]: who this node is and where it keeps things."""

    alias: str
    role: str
    address: str
    port: int
    receive_buffer: int  # KiB of each UDP socket asked of the kernel, which grants what net.core.rmem_max allows
    state_dir: Path
    run_dir: Path
    user: str | None = None  # whom to become when root starts the node
    lock_memory: bool = True
    inspect: bool = False


@dataclass(frozen=True, slots=True)
class WorkersConfig:
    """[workers]: processes of the data plane; a count of 0 means one a core, at most 4."""

    count: int
    pin: bool


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """[proxy]: SOCKS5 and HTTP CONNECT; `listen` is (address, port), or None for off."""

    listen: tuple[str, int] | None
    max_clients: int


@dataclass(frozen=True, slots=True)
class PathConfig:
    """[path]: how circuits are chosen."""

    hops: int
    circuits_ahead: int
    allow_loopback: bool


@dataclass(frozen=True, slots=True)
class ExitConfig:
    """[exit]: rules of the exit policy, first match wins."""

    policy: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DirectoryConfig:
    """[directory]: the signed snapshot of the network and who must have signed it."""

    file: Path
    signers: tuple[bytes, ...]
    threshold: int


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """[limits]: rows of each worker's columns."""

    circuits: int
    streams: int
    connections: int
    pool_packets: int


@dataclass(frozen=True, slots=True)
class SuiteConfig:
    """[suite]: preference among the negotiated AEAD suites."""

    prefer: str


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """[metrics]: the Prometheus endpoint; `listen` is (address, port), or None for off."""

    listen: tuple[str, int] | None
    allow_remote: bool


@dataclass(frozen=True, slots=True)
class Config:
    """A complete, checked configuration; `origins` says for every key ("path.hops") where its value comes from."""

    node: NodeConfig
    workers: WorkersConfig
    proxy: ProxyConfig
    path: PathConfig
    exit: ExitConfig
    directory: DirectoryConfig
    limits: LimitsConfig
    suite: SuiteConfig
    metrics: MetricsConfig
    log: Style
    origins: Mapping[str, str]

    @property
    def control_socket(self) -> Path:
        """Unix socket of the control process."""
        return self.node.run_dir / "control.sock"

    @property
    def key_file(self) -> Path:
        """The node's secret keys."""
        return self.node.state_dir / "keys"

    @property
    def pin_file(self) -> Path:
        """Sequence and digest of the newest snapshot seen."""
        return self.node.state_dir / "directory.pin"

    @property
    def guard_file(self) -> Path:
        """The first hops that this client keeps."""
        return self.node.state_dir / "guards"


# ---------------------------------------------------------------- readers: a value of TOML -> the value

Reader = Callable[[Any], Any]


class _WrongError(ValueError):
    """A value that a key cannot have, with what is allowed."""


def _integer(low: int, high: int) -> Reader:
    def read(value: Any) -> int:
        if type(value) is not int:
            raise _WrongError(f"{_show(value)} is not a whole number; allowed: {low} to {high}")
        if not low <= value <= high:
            raise _WrongError(f"{value} is {'below' if value < low else 'above'} the range {low} to {high}")
        return value

    return read


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _WrongError(f"{_show(value)} is neither true nor false")
    return value


def _text(value: Any, what: str = "text") -> str:
    if not isinstance(value, str):
        raise _WrongError(f"{_show(value)} is not {what}")
    return value


def _choice(*allowed: str) -> Reader:
    def read(value: Any) -> str:
        if value not in allowed:
            raise _WrongError(f"{_show(value)} is none of {', '.join(allowed)}{_suggest(str(value), allowed)}")
        return str(value)

    return read


def _alias(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", _text(value, "a name")):
        raise _WrongError(f"{_show(value)}: 1 to 32 letters, digits, - and _, a letter or digit first")
    return str(value)


def _user(value: Any) -> str | None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}|", _text(value, "a name")):
        raise _WrongError(f"{_show(value)} is not the name of a user")
    return str(value) or None


def _address(value: Any) -> str:
    try:
        return str(ipaddress.ip_address(_text(value, "an address")))
    except ValueError as error:
        raise _WrongError(f"{_show(value)} is not a numeric IPv4 or IPv6 address") from error


def _path(value: Any) -> Path:
    if not _text(value, "a path") or "\0" in value:
        raise _WrongError("an empty path")
    return Path(value)


def _endpoint(value: Any) -> tuple[str, int] | None:
    if _text(value, 'text like "127.0.0.1:9750"') == "off":
        return None
    host, _, port = value.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError as error:
        raise _WrongError(f'{_show(value)} is neither "off" nor a numeric address and port like "127.0.0.1:9750"') from error
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise _WrongError(f"port {port!r} is not within 1 to 65535")
    return str(address), int(port)


def _listen(value: Any) -> tuple[str, int] | None:
    found = _endpoint(value)
    if found and not _is_loopback(found):
        raise _WrongError(f"{found[0]} is not a loopback address: anybody who reaches it could use this proxy")
    return found


def _is_loopback(endpoint: tuple[str, int]) -> bool:
    return ipaddress.ip_address(endpoint[0]).is_loopback


def _count(value: Any) -> int:
    return 0 if value == "auto" else int(_integer(1, 4)(value))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _WrongError(f"{_show(value)} is not a list")
    return value


def _signers(value: Any) -> tuple[bytes, ...]:
    found = _list(value)
    for item in found:
        if not isinstance(item, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", item):
            raise _WrongError(f"{_show(item)} is not an Ed25519 public key of 64 hexadecimal digits")
    keys = tuple(bytes.fromhex(item) for item in found)
    if not 1 <= len(set(keys)) == len(keys) <= 32:
        raise _WrongError("1 to 32 keys, each once")
    return keys


def _rules(value: Any) -> tuple[str, ...]:
    for item in _list(value):
        try:
            parse_rule(_text(item, "a rule").strip())
        except ValueError as error:
            raise _WrongError(str(error)) from error
    if len(value) > RULES_MAX:
        raise _WrongError(f"at most {RULES_MAX} rules")
    return tuple(item.strip() for item in value)


# ---------------------------------------------------------------- the table of keys

Values = dict[str, Any]  # "path.hops" -> value
_REQUIRED: Final = object()


@dataclass(frozen=True, slots=True)
class Key:
    """One key: how it is read, its default (or what computes it from the values before it and the environment), what it is."""

    name: str
    read: Reader
    default: Any
    about: str
    form: str = "value"  # how text from the environment or a flag becomes a value: value, text or list


def state_home(environ: Mapping[str, str]) -> str:
    """Where a user's node keeps its state unless told otherwise."""
    return f"{environ.get('XDG_STATE_HOME') or environ.get('HOME', '') + '/.local/state'}/nyx"


def run_home(environ: Mapping[str, str], state_dir: str | Path | None = None) -> str:
    """Where a user's node has its control socket unless told otherwise."""
    base = environ.get("XDG_RUNTIME_DIR")
    return f"{base}/nyx" if base else f"{state_dir or state_home(environ)}/run"


def _state_default(_values: Values, environ: Mapping[str, str]) -> str:
    return state_home(environ)


def _run_default(values: Values, environ: Mapping[str, str]) -> str:
    return run_home(environ, values.get("node.state_dir"))


def _proxy_default(values: Values, _environ: Mapping[str, str]) -> str:
    return "127.0.0.1:9750" if values.get("node.role") == "client" else "off"


KEYS: Final[tuple[Key, ...]] = (
    Key("node.alias", _alias, "nyx", "name of this node in process titles and output", "text"),
    Key("node.role", _choice("client", "relay", "exit"), "client", "client, relay or exit", "text"),
    Key("node.address", _address, "0.0.0.0", "address of the UDP sockets", "text"),
    Key("node.port", _integer(PORT_FIRST, PORT_LAST), PORT_FIRST, "UDP port"),
    Key("node.receive_buffer", _integer(64, 65536), 4096, "KiB of each worker's UDP buffers asked of the kernel"),
    Key("node.state_dir", _path, _state_default, "keys, guards and the pinned directory", "text"),
    Key("node.run_dir", _path, _run_default, "folder of the control socket", "text"),
    Key("node.user", _user, "", "user to become when root starts the node; empty: none", "text"),
    Key("node.lock_memory", _boolean, default=True, about="keys never reach swap, or the node does not start"),
    Key("node.inspect", _boolean, default=False, about="let other programs of the same user read this node's memory"),
    Key("workers.count", _count, "auto", 'data-plane processes, 1 to 4, or "auto": one a core'),
    Key("workers.pin", _boolean, default=True, about="pin each worker to its core"),
    Key("proxy.listen", _listen, _proxy_default, 'SOCKS5 and HTTP CONNECT, loopback address and port, or "off"', "text"),
    Key("proxy.max_clients", _integer(1, 65536), 1024, "connections to the proxy at one time"),
    Key("path.hops", _integer(1, 7), 3, "relays on a circuit"),
    Key("path.circuits_ahead", _integer(0, 64), 2, "circuits kept ready"),
    Key("path.allow_loopback", _boolean, default=False, about="relays on loopback addresses: test networks only"),
    Key("exit.policy", _rules, ["accept public:80,443", "reject *:*"], "what an exit connects to", "list"),
    Key("directory.file", _path, _REQUIRED, "the signed snapshot of the network", "text"),
    Key("directory.signers", _signers, _REQUIRED, "Ed25519 keys that sign snapshots, hexadecimal", "list"),
    Key("directory.threshold", _integer(1, 32), 1, "signatures a snapshot needs"),
    Key("limits.circuits", _integer(16, 1 << 20), 2048, "circuits per worker; their keys are locked: 3.6 KiB each"),
    Key("limits.streams", _integer(16, 65536), 1024, "streams per worker"),
    Key("limits.connections", _integer(16, 65536), 512, "circuit ends per worker"),
    Key("limits.pool_packets", _integer(1024, 1 << 20), 8192, "packet slots per worker"),
    Key("suite.prefer", _choice("auto", "aegis128l", "chacha20poly1305"), "auto", "AEAD suite where both ends have it", "text"),
    Key(
        "metrics.listen",
        _endpoint,
        "off",
        'Prometheus metrics over HTTP, address and port like "127.0.0.1:9751", or "off"',
        "text",
    ),
    Key(
        "metrics.allow_remote",
        _boolean,
        default=False,
        about="metrics on other than loopback addresses, readable by all who reach them",
    ),
    Key("log.format", _choice(*FORMATS), "text", "text, json (an object a line) or journald (its own fields)", "text"),
    Key("log.level", _choice(*LEVELS), "info", "debug, info, warning or error", "text"),
    Key("log.scrub", _boolean, default=True, about="take addresses, host names, node ids and keys out of the log"),
)

_BY_NAME: Final = {key.name: key for key in KEYS}
_SECTIONS: Final = tuple(dict.fromkeys(key.name.partition(".")[0] for key in KEYS))
_PATHS: Final = ("node.state_dir", "node.run_dir", "directory.file")


def load(
    source: Path | str, name: str = "nyx.toml", environ: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None
) -> Config:
    """The configuration in a file (a Path) or a text. Relative paths count from the file's folder.

    `environ` gives NYX_SECTION_KEY values and the places of defaults, `flags` maps "path.hops" to text. Raises ConfigError
    with every problem found.
    """
    folder = Path()
    if isinstance(source, Path):
        name, folder = str(source), source.absolute().parent
        try:
            source = source.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from error
    return _Loader(name, folder, environ or {}).load(source, flags or {})


class _Loader:
    """One load: collects raw values with their origins, reads them, and gathers problems on the way."""

    def __init__(self, name: str, folder: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.folder = folder
        self.environ = environ
        self.problems: list[tuple[int, str]] = []  # line in the file or 0, text
        self.raw: dict[str, tuple[Any, str]] = {}  # key -> value, origin

    def load(self, text: str, flags: Mapping[str, str]) -> Config:
        self.take_file(text)
        for variable, value in sorted(self.environ.items()):
            section, _, key = variable.removeprefix("NYX_").lower().partition("_")
            if variable.startswith("NYX_") and section in _SECTIONS:
                self.take_text(f"{section}.{key}", value, variable)
        for key, value in flags.items():
            self.take_text(key, value, "flag")
        values = self.read()
        self.cross_check(values)
        if self.problems:
            raise ConfigError([problem for _, problem in sorted(self.problems, key=lambda p: p[0])])
        groups = {
            section: {key.name.partition(".")[2]: values[key.name] for key in KEYS if key.name.startswith(section + ".")}
            for section in _SECTIONS
        }
        return Config(
            NodeConfig(**groups["node"]),
            WorkersConfig(**groups["workers"]),
            ProxyConfig(**groups["proxy"]),
            PathConfig(**groups["path"]),
            ExitConfig(**groups["exit"]),
            DirectoryConfig(**groups["directory"]),
            LimitsConfig(**groups["limits"]),
            SuiteConfig(**groups["suite"]),
            MetricsConfig(**groups["metrics"]),
            Style(**groups["log"]),
            {key.name: self.raw[key.name][1] if key.name in self.raw else "built in" for key in KEYS},
        )

    def problem(self, origin: str, text: str) -> None:
        line = origin.rpartition(":")[2] if origin.startswith(self.name + ":") else ""
        self.problems.append((int(line) if line.isdigit() else 0, f"{origin}  {text}"))

    def take_file(self, text: str) -> None:
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            message = re.sub(r" \(at (.*)\)$", "", str(error))
            place = re.search(r"\(at line (\d+)", str(error))
            raise ConfigError(
                [f"{self.name}:{place[1]}  not TOML: {message}" if place else f"{self.name}  not TOML: {message}"]
            ) from error
        lines = key_lines(text)
        for section, keys in tables.items():
            origin = f"{self.name}:{lines.get((section,), 1)}"
            if section not in _SECTIONS or not isinstance(keys, dict):
                self.problem(origin, f"{section}: unknown section{_suggest(section, _SECTIONS)}")
                continue
            for key, value in keys.items():
                self.take(f"{section}.{key}", value, f"{self.name}:{lines.get((section, key), lines.get((section,), 1))}")

    def take_text(self, key: str, text: str, origin: str) -> None:
        form = _BY_NAME[key].form if key in _BY_NAME else "text"
        value: Any = text
        if form == "list":
            value = [part.strip() for part in text.split(",") if part.strip()] if key == "directory.signers" else text.split(";")
        elif form == "value":
            value = {"true": True, "false": False}.get(text, int(text) if re.fullmatch(r"-?[0-9]{1,12}", text) else text)
        self.take(key, value, origin)

    def take(self, key: str, value: Any, origin: str) -> None:
        if key not in _BY_NAME:
            self.problem(origin, f"{key}: unknown key{_suggest_key(key)}")
            return
        self.raw[key] = (value, origin)

    def read(self) -> Values:
        values: Values = {}
        for key in KEYS:
            value, origin = self.raw.get(key.name, (key.default, self.name))
            if value is _REQUIRED:
                self.problem(origin, f"{key.name}: missing; it names {key.about}")
                continue
            try:
                values[key.name] = key.read(value(values, self.environ) if callable(value) else value)
            except _WrongError as error:
                self.problem(origin, f"{key.name}: {error}")
        for name in _PATHS:
            if name in values:
                home, rest = self.environ.get("HOME", ""), values[name].parts[1:]
                values[name] = self.folder / (Path(home, *rest) if home and values[name].parts[:1] == ("~",) else values[name])
        return values

    def cross_check(self, values: Values) -> None:
        def wrong(key: str, text: str) -> None:
            self.problem(self.raw[key][1] if key in self.raw else self.name, f"{key}: {text}")

        loopback = values.get("path.allow_loopback", True)
        if "node.address" in values and ipaddress.ip_address(values["node.address"]).is_loopback and not loopback:
            wrong("node.address", f"{values['node.address']} is a loopback address; test networks say path.allow_loopback = true")
        if not loopback and values.get("path.hops", HOPS_PRODUCTION) < HOPS_PRODUCTION:
            wrong("path.hops", f"fewer than {HOPS_PRODUCTION} only in test networks (path.allow_loopback = true)")
        signers = values.get("directory.signers")
        if signers and values.get("directory.threshold", 1) > len(signers):
            wrong("directory.threshold", f"{values['directory.threshold']} is above the number of signers, {len(signers)}")
        metrics = values.get("metrics.listen")
        if metrics and not _is_loopback(metrics) and not values.get("metrics.allow_remote", True):
            wrong(
                "metrics.listen", f"{metrics[0]} is not a loopback address; whoever reaches it reads: metrics.allow_remote = true"
            )
        run_dir = values.get("node.run_dir")
        if run_dir and len(str(run_dir / "control.sock").encode()) > SOCKET_PATH_MAX:
            wrong("node.run_dir", f"{run_dir} is too long: a socket's path has at most {SOCKET_PATH_MAX} bytes")


def _show(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _suggest(word: str, known: tuple[str, ...]) -> str:
    import difflib  # an error's way only

    close = difflib.get_close_matches(word.lower(), known, 1, 0.6)
    return f', did you mean "{close[0]}"?' if close else ""


def _suggest_key(key: str) -> str:
    section, _, name = key.partition(".")
    here = tuple(k.name.partition(".")[2] for k in KEYS if k.name.startswith(section + "."))
    if close := _suggest(name, here):
        return close
    elsewhere = tuple(k.name for k in KEYS if k.name.partition(".")[2] == name)
    return f', did you mean "{elsewhere[0]}"?' if elsewhere else _suggest(key, tuple(_BY_NAME))
