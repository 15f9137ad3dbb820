"""The typed configuration: one table of keys, read from TOML, the environment and flags, with every error at once.

A later source wins: built in < file < conf.d/*.toml beside it < NYX_SECTION_KEY in the environment < flags. Nothing is guessed:
an unknown key, a value out of range or a combination that cannot work is a problem with its place, and `load` raises one
ConfigError with all of them. docs/configuration.md is made from the table of keys.

Size: the table of keys and the records that their values become change together, and stand together.
"""

import ipaddress
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nyx.errors import ConfigError
from nyx.logline import FORMATS, LEVELS, Style
from nyx.readers import (
    ADDRESS,
    ALIAS,
    BOOLEAN,
    COUNT,
    ENDPOINT,
    FILE,
    LISTEN,
    LOCAL,
    MEMORY,
    PATH,
    RULES,
    SIGNERS,
    USER,
    Reader,
    WrongValueError,
    choice,
    integer,
    is_loopback,
    suggest,
)  # fmt: skip
from nyx.scrub import keep
from nyx.toml import key_lines
from nyx.wire.geometry import PACKET_SIZE

PORT_FIRST: Final = 43300
PORT_LAST: Final = 43399
SOCKET_PATH_MAX: Final = 107  # bytes of a unix socket's path (sun_path), without its end
MEMORY_NODE: Final = 72  # MiB of supervisor and control process
MEMORY_WORKER: Final = 72  # MiB of a worker and its keeper, with little to do
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
    ratchet: int = 30  # seconds


@dataclass(frozen=True, slots=True)
class WorkersConfig:
    """[workers]: the processes of the data plane."""

    count: int  # 0: one a core, at most 4
    pin: bool


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """[proxy]: where applications come in, by SOCKS5 and HTTP CONNECT."""

    listen: tuple[str, int] | None  # None: off
    max_clients: int


@dataclass(frozen=True, slots=True)
class SdkConfig:
    """[sdk]: applications that use nyx.sdk; limits are a worker's."""

    enabled: bool
    max_clients: int
    max_streams: int


@dataclass(frozen=True, slots=True)
class PathConfig:
    """[path]: how circuits are chosen."""

    hops: int
    circuits_ahead: int
    effort: int
    allow_loopback: bool


@dataclass(frozen=True, slots=True)
class ExitConfig:
    """[exit]: the rules of an exit: the first that matches a target decides, and a target that none matches is refused."""

    policy: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DirectoryConfig:
    """[directory]: the signed snapshot of the network and who must have signed it."""

    file: Path
    signers: tuple[bytes, ...]
    threshold: int


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """[limits]: how many of each thing a worker has room for, laid out at the start, and what the node's memory may grow to."""

    circuits: int
    streams: int
    connections: int
    pool_packets: int
    memory: int  # MiB of the whole node; 0: a quarter of the machine's


@dataclass(frozen=True, slots=True)
class SuiteConfig:
    """[suite]: preference among the negotiated AEAD suites."""

    prefer: str


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """[metrics]: the Prometheus endpoint."""

    listen: tuple[str, int] | None  # None: off
    allow_remote: bool


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """[monitor]: the feed over ZeroMQ; `listen` is where it is served by TCP, with CURVE, or None for off."""

    feed: bool
    listen: tuple[str, int] | None
    interval: int


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """[api]: the gRPC API; `listen` is where it is served by TCP, to clients with a certificate or a token, or None for off."""

    enabled: bool
    listen: tuple[str, int] | None
    tls_cert: Path | None
    tls_key: Path | None
    client_ca: Path | None
    token_file: Path | None


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """[telemetry]: OpenTelemetry; `otlp` is the collector on this machine that metrics and traces go to, or None for off."""

    otlp: tuple[str, int] | None
    interval: int


@dataclass(frozen=True, slots=True)
class Config:
    """A complete, checked configuration; `origins` says for every key ("path.hops") where its value comes from."""

    node: NodeConfig
    workers: WorkersConfig
    proxy: ProxyConfig
    sdk: SdkConfig
    path: PathConfig
    exit: ExitConfig
    directory: DirectoryConfig
    limits: LimitsConfig
    suite: SuiteConfig
    metrics: MetricsConfig
    monitor: MonitorConfig
    api: ApiConfig
    telemetry: TelemetryConfig
    log: Style
    origins: Mapping[str, str]

    @property
    def control_socket(self) -> Path:
        """Unix socket of the control process."""
        return self.node.run_dir / "control.sock"

    @property
    def sdk_socket(self) -> Path:
        """Unix socket of the applications that use nyx.sdk."""
        return self.node.run_dir / "sdk.sock"

    @property
    def api_socket(self) -> Path:
        """Unix socket of the gRPC API."""
        return self.node.run_dir / "api.sock"

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

    @property
    def live(self) -> str:
        """What a running node does with a change, and from when; empty: it takes it at its next start only."""
        return _LIVE.get(self.name, "")

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is _REQUIRED


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


def _sdk_default(values: Values, _environ: Mapping[str, str]) -> bool:
    return values.get("node.role") == "client" or values.get("proxy.listen") is not None


def _proxy_default(values: Values, _environ: Mapping[str, str]) -> str:
    return "127.0.0.1:9750" if values.get("node.role") == "client" else "off"


KEYS: Final[tuple[Key, ...]] = (
    Key("node.alias", ALIAS, "nyx", "name of this node in process titles and output", "text"),
    Key("node.role", choice("client", "relay", "exit"), "client", "client, relay or exit", "text"),
    Key("node.address", ADDRESS, "0.0.0.0", "address of the UDP sockets", "text"),
    Key("node.port", integer(PORT_FIRST, PORT_LAST), PORT_FIRST, "UDP port"),
    Key("node.receive_buffer", integer(64, 65536), 4096, "KiB of each worker's UDP buffers asked of the kernel"),
    Key("node.state_dir", PATH, _state_default, "keys, guards and the pinned directory", "text"),
    Key("node.run_dir", PATH, _run_default, "folder of the control socket", "text"),
    Key("node.user", USER, "", "user to become when root starts the node; empty: none", "text"),
    Key("node.lock_memory", BOOLEAN, default=True, about="keys never reach swap, or the node does not start"),
    Key("node.inspect", BOOLEAN, default=False, about="let other programs of the same user read this node's memory"),
    Key(
        "node.ratchet",
        integer(1, 3600),
        30,
        "seconds an epoch of layer keys lasts, the same in all nodes; not 30: test networks only",
    ),
    Key("workers.count", COUNT, "auto", 'data-plane processes, 1 to 4, or "auto": one a core'),
    Key("workers.pin", BOOLEAN, default=True, about="pin each worker to its core"),
    Key("proxy.listen", LISTEN, _proxy_default, 'SOCKS5 and HTTP CONNECT, loopback address and port, or "off"', "text"),
    Key("proxy.max_clients", integer(1, 65536), 1024, "connections to the proxy at one time"),
    Key("sdk.enabled", BOOLEAN, _sdk_default, "serve applications that use nyx.sdk on run_dir/sdk.sock"),
    Key("sdk.max_clients", integer(1, 1024), 16, "applications of the SDK at one time, per worker"),
    Key("sdk.max_streams", integer(1, 65536), 256, "their streams at one time, per worker"),
    Key("path.hops", integer(1, 7), 3, "relays on a circuit"),
    Key("path.circuits_ahead", integer(0, 64), 2, "circuits kept ready"),
    Key("path.effort", integer(0, 32), 20, "most bits of proof of work made for a relay under load: 20 takes about a second"),
    Key("path.allow_loopback", BOOLEAN, default=False, about="relays on loopback addresses: test networks only"),
    Key("exit.policy", RULES, ["accept public:80,443", "reject *:*"], "what an exit connects to", "list"),
    Key("directory.file", PATH, _REQUIRED, "the signed snapshot of the network", "text"),
    Key("directory.signers", SIGNERS, _REQUIRED, "Ed25519 keys that sign snapshots, hexadecimal", "list"),
    Key("directory.threshold", integer(1, 32), 1, "signatures a snapshot needs"),
    Key("limits.circuits", integer(16, 1 << 20), 2048, "circuits per worker; their keys are locked: 2.1 KiB each, and 0.8 MiB"),
    Key("limits.streams", integer(16, 65536), 1024, "streams per worker"),
    Key("limits.connections", integer(16, 65536), 512, "circuit ends per worker"),
    Key("limits.pool_packets", integer(1024, 1 << 20), 8192, "packet slots per worker"),
    Key("limits.memory", MEMORY, "auto", 'MiB that all processes of the node hold at most, or "auto": a quarter of the machine'),
    Key(
        "suite.prefer",
        choice("auto", "aegis128l", "aegis256", "chacha20poly1305"),
        "auto",
        "AEAD suite where both ends have it; aegis256 is one of links, and the layers under it are ChaCha20's",
        "text",
    ),
    Key("metrics.listen", ENDPOINT, "off", 'Prometheus metrics, address and port like "127.0.0.1:9751", or "off"', "text"),
    Key("metrics.allow_remote", BOOLEAN, default=False, about="metrics on other than loopback addresses, readable by all"),
    Key("monitor.feed", BOOLEAN, default=False, about="publish the monitoring feed at feed.sock in node.run_dir"),
    Key("monitor.listen", ENDPOINT, "off", 'the feed by TCP with CURVE, address and port like "0.0.0.0:9752", or "off"', "text"),
    Key("monitor.interval", integer(1, 3600), 2, "seconds between two looks that are published"),
    Key("api.enabled", BOOLEAN, default=True, about="serve the gRPC API to this node's user on run_dir/api.sock"),
    Key("api.listen", ENDPOINT, "off", 'the API by TCP, address and port like "127.0.0.1:9753", or "off"', "text"),
    Key("api.tls_cert", FILE, "", "certificate chain of the API by TCP, PEM", "text"),
    Key("api.tls_key", FILE, "", "its private key, PEM", "text"),
    Key("api.client_ca", FILE, "", "who signs the certificates that clients of the API by TCP must have, PEM", "text"),
    Key("api.token_file", FILE, "", "file with the token that clients of the API by TCP must send", "text"),
    Key(
        "telemetry.otlp",
        LOCAL,
        "off",
        'OpenTelemetry collector, OTLP over HTTP, loopback like "127.0.0.1:4318", or "off"',
        "text",
    ),
    Key("telemetry.interval", integer(1, 3600), 15, "seconds between two deliveries to it"),
    Key("log.format", choice(*FORMATS), "text", "text, json (an object a line) or journald (its own fields)", "text"),
    Key("log.level", choice(*LEVELS), "info", "debug, info, warning or error", "text"),
    Key("log.scrub", BOOLEAN, default=True, about="take addresses, host names, node ids and keys out of the log"),
)

# Keys that a running node takes over, with what the change holds for. All others size memory, name sockets or folders.
_LOG: Final = "at once; keepers, which tell of their own failure alone, from their next start"
_LIVE: Final = {
    "proxy.max_clients": "connections accepted after it",
    "sdk.max_streams": "streams opened after it",
    "path.hops": "circuits built after it; circuits of another length take no new stream",
    "path.circuits_ahead": "at once",
    "path.effort": "circuits built after it",
    "exit.policy": "streams opened after it",
    "directory.file": "paths chosen after it",
    "directory.signers": "paths chosen after it",
    "directory.threshold": "paths chosen after it",
    "limits.memory": "at once",
    "suite.prefer": "links and circuits opened after it",
    "log.format": _LOG,
    "log.level": _LOG,
    "log.scrub": _LOG,
}

_BY_NAME: Final = {key.name: key for key in KEYS}
keep(_BY_NAME)
_SECTIONS: Final = tuple(dict.fromkeys(key.name.partition(".")[0] for key in KEYS))
_PATHS: Final = tuple(key.name for key in KEYS if key.read in (PATH, FILE))


def load(
    source: Path | str,
    name: str = "nyx.toml",
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
    instead: Mapping[Path, str] | None = None,
) -> Config:
    """The configuration in a file (a Path, with conf.d/*.toml beside it) or a text. Relative paths count from the file's folder.

    `environ` gives NYX_SECTION_KEY values and the places of defaults, `flags` maps "path.hops" to text, `instead` has texts that
    stand for what files hold. Raises ConfigError with every problem found.
    """
    if isinstance(source, str):
        return _Loader([name], Path(), environ or {}).load([source], flags or {})
    files = [source, *drop_ins(source)]
    texts, problems = [], []
    for file in files:
        try:
            texts.append(instead[file] if instead and file in instead else file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}")
    if problems:
        raise ConfigError(problems)
    return _Loader([str(file) for file in files], source.absolute().parent, environ or {}).load(texts, flags or {})


def drop_ins(file: Path) -> list[Path]:
    """The files that are read after this one, a later one winning: conf.d/*.toml beside it, by name."""
    return sorted((file.parent / "conf.d").glob("*.toml"))


def settings(config: Config) -> dict[str, Any]:
    """Every key with its value in the form in which a file would say it: what JSON and TOML can hold."""
    return {key.name: setting(config, key.name) for key in KEYS}


def setting(config: Config, key: str) -> Any:
    """One key's value in the form in which a file would say it."""
    section, _, name = key.partition(".")
    value = getattr(getattr(config, section), name)
    if isinstance(value, Path):
        return str(value)
    if key in ("workers.count", "limits.memory"):
        return value or "auto"
    if _BY_NAME[key].read in (LISTEN, LOCAL, ENDPOINT):
        return "off" if value is None else f"[{value[0]}]:{value[1]}" if ":" in value[0] else f"{value[0]}:{value[1]}"
    if value is None:
        return ""
    if isinstance(value, tuple):
        return [item.hex() if isinstance(item, bytes) else item for item in value]
    return value


def from_settings(values: Mapping[str, Any], origins: Mapping[str, str] | None = None, name: str = "configuration") -> Config:
    """The configuration of which `settings` are these. Raises ConfigError.

    Another release may have written them: a key that is missing has its default, one that is unknown is left out.
    """
    loader = _Loader([name], Path("/"), {})
    for key in _BY_NAME.keys() & values.keys():
        loader.take(key, values[key], (origins or {}).get(key, name))
    return loader.finish()


def value_of(key: str, text: str) -> Any:
    """What a text from the environment, a flag or a command line says of a key, in the form of a file; not checked."""
    form = _BY_NAME[key].form if key in _BY_NAME else "text"
    if form == "list":
        return [part.strip() for part in text.split("," if key == "directory.signers" else ";") if part.strip()]
    if form == "value":
        return {"true": True, "false": False}.get(text, int(text) if re.fullmatch(r"-?[0-9]{1,12}", text) else text)
    return text


def known_key(key: str) -> Key:
    """The key of this name. Raises ConfigError with what it may have meant."""
    if key not in _BY_NAME:
        raise ConfigError([f"{key}: unknown key{_suggest_key(key)}"])
    return _BY_NAME[key]


class _Loader:
    """One load: collects raw values with their origins, reads them, and gathers problems on the way."""

    def __init__(self, names: Sequence[str], folder: Path, environ: Mapping[str, str]) -> None:
        self.name = names[0]  # of the file that lacks what is missing
        self.names = names
        self.folder = folder
        self.environ = environ
        self.problems: list[tuple[int, int, str]] = []  # number of the file, line in it or 0, text
        self.raw: dict[str, tuple[Any, str]] = {}  # key -> value, origin

    def load(self, texts: Sequence[str], flags: Mapping[str, str]) -> Config:
        tables = [self.parse(name, text) for name, text in zip(self.names, texts, strict=True)]
        if self.problems:  # a file that is not TOML leaves keys out: what they would miss is noise
            raise self.error()
        for name, text, table in zip(self.names, texts, tables, strict=True):
            self.take_file(name, key_lines(text), table)
        for variable, value in sorted(self.environ.items()):
            section, _, key = variable.removeprefix("NYX_").lower().partition("_")
            if variable.startswith("NYX_") and section in _SECTIONS:
                self.take_text(f"{section}.{key}", value, variable)
        for key, value in flags.items():
            self.take_text(key, value, "flag")
        return self.finish()

    def finish(self) -> Config:
        values = self.read()
        self.cross_check(values)
        if self.problems:
            raise self.error()
        groups = {
            section: {key.name.partition(".")[2]: values[key.name] for key in KEYS if key.name.startswith(section + ".")}
            for section in _SECTIONS
        }
        return Config(
            NodeConfig(**groups["node"]),
            WorkersConfig(**groups["workers"]),
            ProxyConfig(**groups["proxy"]),
            SdkConfig(**groups["sdk"]),
            PathConfig(**groups["path"]),
            ExitConfig(**groups["exit"]),
            DirectoryConfig(**groups["directory"]),
            LimitsConfig(**groups["limits"]),
            SuiteConfig(**groups["suite"]),
            MetricsConfig(**groups["metrics"]),
            MonitorConfig(**groups["monitor"]),
            ApiConfig(**groups["api"]),
            TelemetryConfig(**groups["telemetry"]),
            Style(**groups["log"]),
            {key.name: self.raw[key.name][1] if key.name in self.raw else "built in" for key in KEYS},
        )

    def error(self) -> ConfigError:
        return ConfigError([text for _, _, text in sorted(self.problems, key=lambda p: p[:2])])

    def problem(self, origin: str, text: str) -> None:
        file, _, line = origin.rpartition(":")
        known = file in self.names and line.isdigit()
        self.problems.append((self.names.index(file) if known else 0, int(line) if known else 0, f"{origin}  {text}"))

    def parse(self, name: str, text: str) -> dict[str, Any]:
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            message = re.sub(r" \(at (.*)\)$", "", str(error))
            place = re.search(r"\(at line (\d+)", str(error))
            self.problem(f"{name}:{place[1]}" if place else name, f"not TOML: {message}")
        except RecursionError:
            self.problem(name, "not TOML: brackets are nested too deeply")
        except ValueError:  # the interpreter's own bound on decimal digits
            self.problem(name, "a number has too many digits")
        return {}

    def take_file(self, name: str, lines: Mapping[tuple[str, ...], int], tables: Mapping[str, Any]) -> None:
        for section, keys in tables.items():
            start = lines.get((section,), 1)
            if section not in _SECTIONS or not isinstance(keys, dict):
                self.problem(f"{name}:{start}", f"{section}: unknown section{suggest(section, _SECTIONS)}")
                continue
            for key, value in keys.items():
                self.take(f"{section}.{key}", value, f"{name}:{lines.get((section, key), start)}")

    def take_text(self, key: str, text: str, origin: str) -> None:
        self.take(key, value_of(key, text), origin)

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
            except WrongValueError as error:
                self.problem(origin, f"{key.name}: {error}")
        for name in _PATHS:
            if values.get(name) is not None:
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
        if metrics and not is_loopback(metrics) and not values.get("metrics.allow_remote", True):
            wrong(
                "metrics.listen", f"{metrics[0]} is not a loopback address; whoever reaches it reads: metrics.allow_remote = true"
            )
        if (text := _wrong_memory(values)) is not None:
            wrong("limits.memory", text)
        for key, text in _wrong_api(values):
            wrong(key, text)
        run_dir = values.get("node.run_dir")
        if run_dir and len(bytes(run_dir / "control.sock")) > SOCKET_PATH_MAX:
            wrong("node.run_dir", f"{run_dir} is too long: a socket's path has at most {SOCKET_PATH_MAX} bytes")


def _wrong_memory(values: Values) -> str | None:
    """What is too little for the processes and the packets of so many workers."""
    memory, workers, packets = (values.get(key) or 0 for key in ("limits.memory", "workers.count", "limits.pool_packets"))
    least = MEMORY_NODE + max(workers, 1) * (MEMORY_WORKER + (packets * PACKET_SIZE >> 20))
    if not memory or memory >= least:
        return None
    return f"{memory} MiB is not enough for this node's processes and packets: at least {least}"


def _wrong_api(values: Values) -> list[tuple[str, str]]:
    """What cannot work, or would let anybody in, among the keys of the API by TCP."""
    listen, cert, key, ca, token = (
        values.get(f"api.{name}") for name in ("listen", "tls_cert", "tls_key", "client_ca", "token_file")
    )
    found = []
    if bool(cert) != bool(key):
        found.append(("api.tls_cert", "api.tls_cert and api.tls_key need each other"))
    if ca and not cert:
        found.append(("api.client_ca", "needs api.tls_cert and api.tls_key"))
    if listen and not ca and not token:
        found.append(("api.listen", "anybody who reaches it could command this node: set api.client_ca or api.token_file"))
    if listen and not cert and not is_loopback(listen):
        found.append(("api.listen", f"{listen[0]} is not a loopback address: a token needs api.tls_cert and api.tls_key there"))
    return found


def _suggest_key(key: str) -> str:
    section, _, name = key.partition(".")
    here = tuple(k.name.partition(".")[2] for k in KEYS if k.name.startswith(section + "."))
    if close := suggest(name, here):
        return close
    elsewhere = tuple(k.name for k in KEYS if k.name.partition(".")[2] == name)
    return f', did you mean "{elsewhere[0]}"?' if elsewhere else suggest(key, tuple(_BY_NAME))
