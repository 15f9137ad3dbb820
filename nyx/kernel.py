"""The one decorator of everything that touches each packet, and the doors out of compiled code: C functions and atomics.

A kernel is a plain function over arrays and integers in Numba's subset; it returns integers, allocates nothing and raises
nothing. `@kernel(result, *arguments)` compiles it where it stands, with an explicit signature, unless NYX_KERNELS=plain,
in which case the function runs as ordinary Python (tests, coverage, the control process; numba is not imported then).

Argument types are text or dtypes:

    "i8", "u8", "i4", ...   a scalar              "u1[]", "i8[]", ...   a C-contiguous vector
    a numpy dtype           a C-contiguous vector of that structured dtype

Rules for code that must behave the same both ways: read fields as `row["name"]`, never `row.name`; cast every load
(`np.int64(a[i])`): uint8 and uint64 arithmetic wrap differently uncompiled; addresses are int64 (`address(a)`). Helpers marked
`@inline` are for kernels alone: called from Python they would compile at run time, which a sealed process may not.

The compiled code is cached on disk in a folder named by a digest of the kernel's module, of every module of ours that it
imports, of the versions of the compiler and of the processor: Numba's own cache does not see other files.
"""

import ctypes
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

# numpy's BLAS starts a thread at import and forking needs a single-threaded parent.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402  (after the environment is set)
from numpy.typing import NDArray  # noqa: E402

PLAIN: Final = os.environ.get("NYX_KERNELS", "") == "plain"
_ROOT: Final = Path(__file__).resolve().parent.parent
_OURS: Final = r"(?:nyx|shards)[\w.]*"
_IMPORT: Final = re.compile(
    rf"^[ \t]*(?:from[ \t]+({_OURS})[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+({_OURS}))",
    re.MULTILINE,
)
_SCALARS: Final = {
    "i1": ctypes.c_int8, "i2": ctypes.c_int16, "i4": ctypes.c_int32, "i8": ctypes.c_int64,
    "u1": ctypes.c_uint8, "u2": ctypes.c_uint16, "u4": ctypes.c_uint32, "u8": ctypes.c_uint64,
}  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])
Spec = str | np.dtype[Any]
Int = Any  # an integer inside kernels: int in Python, int64 when it comes from an array or from compiled code


def address_of(array: NDArray[Any]) -> int:
    """Address of the array's first byte, for Python around the kernels."""
    return int(array.ctypes.data)


# ---------------------------------------------------------------- the cache's folder


def _module_file(name: str) -> Path | None:
    base = _ROOT.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for source, names, direct in _IMPORT.findall(path.read_text("utf-8")):
        parts = [direct] if direct else [source, *(f"{source}.{n}" for n in re.findall(r"\w+", names))]
        found.extend(p for p in map(_module_file, parts) if p)
    return tuple(found)


def module_closure(path: Path) -> list[Path]:
    """The file and every file of ours that it imports, directly or not, sorted."""
    seen: set[Path] = set()
    todo = [path.resolve()]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo.extend(_imports(current))
    return sorted(seen)


@cache
def _versions() -> bytes:
    import llvmlite
    import llvmlite.binding
    import nacl
    import numba

    cpu = f"{llvmlite.binding.get_host_cpu_name()} {llvmlite.binding.get_host_cpu_features().flatten()}"
    text = f"{sys.version} {np.__version__} {numba.__version__} {llvmlite.__version__} {nacl.__version__} {cpu}"
    return text.encode()


@cache
def _digest(path: Path) -> str:
    state = hashlib.sha256(_versions())
    for file in module_closure(path):
        state.update(os.path.relpath(file, _ROOT).encode() + b"\0" + file.read_bytes() + b"\0")
    return state.hexdigest()[:24]


def source_digest(modules: Iterable[str]) -> str:
    """Names one state of these modules, of all they import of ours, of the compiler and of the processor."""
    files = {file for name in modules if (file := _module_file(name))}
    return hashlib.sha256("".join(_digest(file) for file in sorted(files)).encode()).hexdigest()[:24]


def cache_root() -> Path:
    """Folder of the compiled kernels: NYX_CACHE_DIR, or the user's cache folder.

    Cached code is executed: the folder must belong to us or to root and must not be writable by others.
    Raises PermissionError otherwise.
    """
    base = os.environ.get("NYX_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(base) / "nyx" / "kernels"
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    state = root.stat()
    if state.st_uid not in (0, os.getuid()) or state.st_mode & 0o022:
        raise PermissionError(f"{root}: compiled kernels are executed, so this folder must be yours and writable by you alone")
    return root


def _compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    import numba
    from numba.core import caching

    path = Path(function.__code__.co_filename).resolve()
    # Numba probes by writing a file, which a read-only installed cache refuses though reading it is all we need.
    locator: Any = caching.UserProvidedCacheLocator
    locator.ensure_cache_path = lambda self: Path(self.get_cache_path()).mkdir(parents=True, exist_ok=True)
    numba.config.CACHE_DIR = str(cache_root() / _digest(path))  # type: ignore[attr-defined]
    njit: Callable[..., Any] = numba.njit
    return njit


def _type(spec: Spec) -> Any:
    import numba

    if isinstance(spec, np.dtype):
        return numba.types.Array(numba.from_dtype(spec), 1, "C")
    if spec == "void":
        return numba.void
    scalar = numba.from_dtype(np.dtype(spec.removesuffix("[]")))
    return numba.types.Array(scalar, 1, "C") if spec.endswith("[]") else scalar


def kernel(result: str, *arguments: Spec) -> Callable[[F], F]:
    """Decorator: compile the function with this signature, or leave it as it is under NYX_KERNELS=plain."""

    def wrap(function: F) -> F:
        if PLAIN:
            return function
        njit = _compiler(function)
        signature = _type(result)(*(_type(a) for a in arguments))
        compiled: F = njit(signature, nogil=True, cache=True, error_model="numpy", _nrt=False, no_cfunc_wrapper=True)(function)
        return compiled

    return wrap


def _part(function: F, **options: bool) -> F:
    """Compile a part of kernels for whatever types they pass: without the wrappers for Python, and once for all constants."""
    if PLAIN:
        return function
    import numba

    njit: Callable[..., Any] = numba.njit
    compiled: Any = njit(nogil=True, error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(
        function
    )
    resolve = compiled.get_call_template

    def get_call_template(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        return resolve(tuple(map(numba.types.unliteral, args)), kws)

    compiled.get_call_template = get_call_template
    part: F = compiled
    return part


def inline(function: F) -> F:
    """Decorator of a small helper of kernels, compiled into its callers for whatever types they pass."""
    return _part(function, forceinline=True)


def called(function: F) -> F:
    """Decorator of a bigger or rarer part of kernels: compiled once for the types it gets, and called.

    Inlined everywhere, such parts would multiply: a kernel that mentions ten of them took ten seconds to compile.
    """
    return _part(function)


@inline
def address(array: NDArray[Any]) -> int:
    """Address of the array's first byte as int64, inside kernels."""
    return np.int64(array.ctypes.data)  # type: ignore[return-value]


# ---------------------------------------------------------------- C functions


def foreign(library: str | None, name: str, result: str, *arguments: str) -> Callable[..., int]:
    """A C function that kernels and, under NYX_KERNELS=plain, Python can call. Pointers are "i8" addresses.

    `library` is a path, or None for the C library. Raises ImportError when the symbol is missing: calling a
    missing symbol from compiled code would crash.
    """
    if PLAIN:
        handle = ctypes.CDLL(library)
        try:
            function = handle[name]
        except AttributeError as error:
            raise ImportError(f"{library or 'libc'} does not export {name}") from error
        function.restype = None if result == "void" else _SCALARS[result]
        function.argtypes = [_SCALARS[a] for a in arguments]
        return function
    import llvmlite.binding
    import numba

    if library:
        llvmlite.binding.load_library_permanently(library)
    if not llvmlite.binding.address_of_symbol(name):
        raise ImportError(f"{library or 'libc'} does not export {name}")
    external: Callable[..., int] = numba.types.ExternalFunction(name, _type(result)(*(_type(a) for a in arguments)))
    return external


# ---------------------------------------------------------------- words of 8 bytes at an address (aligned, for the atomics)

if PLAIN:

    def load_acquire(at: Int) -> int:
        """The word at this address; later loads and stores stay behind it."""
        return ctypes.c_int64.from_address(int(at)).value

    def store_release(at: Int, value: Int) -> None:
        """Store the word; everything stored before it is visible to whoever sees it. The commit of every protocol here."""
        ctypes.c_int64.from_address(int(at)).value = int(value)

    def fence() -> None:
        """Order a store before a later load (sequential consistency); uncompiled code runs on x86 between two locks."""

    def prefetch(at: Int) -> None:
        """The cache line at this address is about to be read."""

    def load_word(at: Int) -> int:
        """The 8 bytes at this address, little-endian."""
        return ctypes.c_int64.from_address(int(at)).value

    def store_word(at: Int, value: Int) -> None:
        """Store 8 bytes at this address, little-endian."""
        ctypes.c_int64.from_address(int(at)).value = int(value)

    def swap_word(value: Int) -> int:
        """The word with its 8 bytes in the opposite order: big-endian from little-endian and back."""
        return int.from_bytes(int(value).to_bytes(8, "little", signed=True), "big", signed=True)

else:
    from llvmlite import ir as _ir
    from numba import types as _types
    from numba.core import cgutils as _cgutils
    from numba.extending import intrinsic as _intrinsic

    def _pointer(builder: Any, value: Any) -> Any:
        return builder.inttoptr(value, _ir.IntType(64).as_pointer())

    @_intrinsic
    def load_acquire(_context: Any, at: Any) -> Any:  # noqa: ARG001  (the compiler's form)
        """The word at this address; later loads and stores stay behind it."""

        def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
            return builder.load_atomic(_pointer(builder, args[0]), "acquire", 8, typ=_ir.IntType(64))

        return _types.int64(_types.int64), generate

    @_intrinsic
    def store_release(_context: Any, at: Any, value: Any) -> Any:  # noqa: ARG001  (the compiler's form)
        """Store the word; everything stored before it is visible to whoever sees it. The commit of every protocol here."""

        def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
            builder.store_atomic(args[1], _pointer(builder, args[0]), "release", 8)
            return context.get_dummy_value()

        return _types.void(_types.int64, _types.int64), generate

    @_intrinsic
    def fence(_context: Any) -> Any:
        """Order a store before a later load (sequential consistency)."""

        def generate(context: Any, builder: Any, _s: Any, _a: Any) -> Any:
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return _types.void(), generate

    @_intrinsic
    def prefetch(_context: Any, at: Any) -> Any:  # noqa: ARG001  (the compiler's form)
        """The cache line at this address is about to be read."""

        def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
            pointer, number = _ir.IntType(8).as_pointer(), _ir.IntType(32)
            form = _ir.FunctionType(_ir.VoidType(), [pointer, number, number, number])
            function = _cgutils.get_or_insert_function(builder.module, form, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
            read, keep, data = number(0), number(3), number(1)
            builder.call(function, [builder.inttoptr(args[0], pointer), read, keep, data])
            return context.get_dummy_value()

        return _types.void(_types.int64), generate

    @_intrinsic
    def load_word(_context: Any, at: Any) -> Any:  # noqa: ARG001  (the compiler's form)
        """The 8 bytes at this address, little-endian."""

        def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
            return builder.load(_pointer(builder, args[0]), align=1, typ=_ir.IntType(64))

        return _types.int64(_types.int64), generate

    @_intrinsic
    def store_word(_context: Any, at: Any, value: Any) -> Any:  # noqa: ARG001  (the compiler's form)
        """Store 8 bytes at this address, little-endian."""

        def generate(context: Any, builder: Any, _s: Any, args: Any) -> Any:
            builder.store(args[1], _pointer(builder, args[0]), align=1)
            return context.get_dummy_value()

        return _types.void(_types.int64, _types.int64), generate

    @_intrinsic
    def swap_word(_context: Any, value: Any) -> Any:  # noqa: ARG001  (the compiler's form)
        """The word with its 8 bytes in the opposite order: big-endian from little-endian and back."""

        def generate(_c: Any, builder: Any, _s: Any, args: Any) -> Any:
            return builder.bswap(args[0])

        return _types.int64(_types.int64), generate
