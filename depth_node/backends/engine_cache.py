"""Built TensorRT engines on disk: found again only where they are what they were.

Building takes minutes, and a plan fits one GPU, one TensorRT and one ONNX file. Beside each plan
lies a sidecar (JSON) with the key it was built for and its hash. What is cut off, changed, swapped
or built for something else is refused with the reason and built anew: to deserialise a plan is to
run code from it. The hash finds accidents and mix-ups; whoever may write into the folder may also
forge it, so the folder is made for its owner alone.

On disk, with <id> = `EngineKey.digest()`:

    <id>.engine         the plan; its modification time is its last use
    <id>.engine.json    the sidecar, written last
    <id>.lock           held while it is built or removed
    <id>.new, .<id>...  being written; left over if a process was killed, removed by `prune`
    <module>-<version>-sm<sm>.timing    kernel times that TensorRT measured, for the next build
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import asdict, dataclass, field, fields
import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path
import re
import stat
import tempfile
import time
from typing import Any, Final, NamedTuple

from depth_node.backends import BackendError
from depth_node.backends.tensorrt_build import (
    BUILDER_REVISION,
    PRECISIONS,
    BuildRequest,
    Profile,
)

__all__ = [
    'DEFAULT_LIMIT_MB',
    'CacheError',
    'EngineCache',
    'EngineKey',
    'Entry',
    'Found',
    'default_cache_dir',
    'engines_folder',
]

DEFAULT_LIMIT_MB: Final = 2048
_SIDECAR_VERSION: Final = 1
_MAX_SIDECAR_BYTES: Final = 1 << 16
_ID = '[0-9a-f]{32}'
_PLAN = re.compile(rf'({_ID})\.engine')
_OWN = re.compile(rf'\.?({_ID})\.(engine|engine\.json|lock|new|new\..+\.part|engine\..+\.part)')


class CacheError(BackendError):
    """The folder of engines cannot be used."""


@dataclass(frozen=True)
class EngineKey:
    """What a plan depends on: it is used only where all of this is equal.

    Attributes:
        onnx_sha256: of the ONNX file.
        module: tensorrt or tensorrt_rtx.
        trt_version: as the module says it.
        gpu_name: as CUDA says it.
        sm: compute capability, 87 for 8.7.
        precision: one of `tensorrt_build.PRECISIONS`.
        profile: min, opt and max (height, width); None for a fixed size.
        memory_mib: scratch memory that the engine may use.
        optimization_level: None where TensorRT's own was taken.
        builder: `tensorrt_build.BUILDER_REVISION`.
    """

    onnx_sha256: str
    module: str
    trt_version: str
    gpu_name: str
    sm: int
    precision: str
    profile: Profile | None
    memory_mib: int
    optimization_level: int | None = None
    builder: int = BUILDER_REVISION

    @classmethod
    def of(
        cls, request: BuildRequest, onnx_sha256: str, *, module: str, trt_version: str,
        gpu_name: str, sm: int,
    ) -> EngineKey:
        """Return the key of a request on one GPU and one TensorRT."""
        return cls(onnx_sha256, module, trt_version, gpu_name, sm, request.precision,
                   request.profile, request.memory_mib, request.optimization_level)

    @classmethod
    def from_json(cls, raw: Any) -> EngineKey:
        """Read a key from a sidecar.

        Raises:
            ValueError: it is none, or one of another version of this package.
        """
        names = {item.name for item in fields(cls)}
        if not isinstance(raw, dict) or set(raw) != names:
            raise ValueError('the key has other fields than this version of depth-node writes')
        texts = ('onnx_sha256', 'module', 'trt_version', 'gpu_name', 'precision')
        numbers = ('sm', 'memory_mib', 'builder')
        level = raw['optimization_level']
        if not (all(isinstance(raw[name], str) for name in texts)
                and all(type(raw[name]) is int for name in numbers)
                and raw['precision'] in PRECISIONS
                and (level is None or type(level) is int)):
            raise ValueError('the key has fields of other types than this version writes')
        profile = raw['profile']
        if profile is not None:
            if not (isinstance(profile, list) and len(profile) == 3 and all(
                    isinstance(size, list) and len(size) == 2
                    and all(type(side) is int for side in size) for size in profile)):
                raise ValueError('the profile is not three sizes')
            profile = Profile(*((size[0], size[1]) for size in profile))
        return cls(**{**raw, 'profile': profile})

    def digest(self) -> str:
        """Return the name of the key's files, 32 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def differences(self, here: EngineKey) -> str:
        """Say how this key, of an engine on disk, differs from the one that is needed."""
        words = []
        for name, label in (
                ('module', ''), ('trt_version', 'TensorRT '), ('gpu_name', ''), ('sm', 'sm_'),
                ('precision', ''), ('profile', 'sizes '), ('memory_mib', 'a limit of MiB '),
                ('optimization_level', 'optimization level '), ('builder', 'builder revision ')):
            mine, other = getattr(self, name), getattr(here, name)
            if mine != other:
                words.append(f'for {label}{_shown(mine)}, here {label}{_shown(other)}')
        return '; '.join(words)


class Found(NamedTuple):
    """A plan, or why there is none.

    Attributes:
        plan: None if there is none.
        reason: why there is none; with a plan, why it had to be built, or ''.
        unkept: why a plan that was built is not kept, '' if it is.
    """

    plan: bytes | None
    reason: str
    unkept: str = ''


@dataclass(frozen=True)
class Entry:
    """An engine in the folder.

    Attributes:
        path: the plan.
        nbytes: of the plan.
        last_used: seconds since 1970.
        key: None where the sidecar cannot be read.
        info: what else the sidecar says: model, when it was built, how long that took.
        problem: why it will not be used, '' if it will.
    """

    path: Path
    nbytes: int
    last_used: float
    key: EngineKey | None = None
    info: dict[str, Any] = field(default_factory=dict)
    problem: str = ''


def default_cache_dir() -> Path:
    """Return the user's folder for what depth_node compiles, as the node takes it."""
    home = os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache')
    return Path(home).expanduser() / 'depth_node'


def engines_folder(cache_dir: Path | None = None) -> Path:
    """Return the folder of engines in a cache folder (the user's if None)."""
    return (cache_dir or default_cache_dir()) / 'engines'


class EngineCache:
    """A folder of engines; several processes may use it at once."""

    def __init__(self, folder: Path, limit_mb: int = DEFAULT_LIMIT_MB) -> None:
        """Use a folder, which is made when something is stored.

        Args:
            folder: of the engines; see `engines_folder`.
            limit_mb: what the plans may take together (10^6 bytes); beyond that those that were
                not used for longest are removed. The newest one always stays.
        """
        if limit_mb < 1:
            raise CacheError(f'limit_mb {limit_mb}: 1 or more is expected')
        self.folder = folder
        self.limit_mb = limit_mb

    def lookup(self, key: EngineKey) -> Found:
        """Return the plan for a key, or why there is none; marks it as used."""
        digest = key.digest()
        path = self._plan(digest)
        try:
            sidecar = self._read_sidecar(digest)
            plan = _read(path, sidecar['bytes'])
            _compare(plan, sidecar)
        except FileNotFoundError:
            return Found(None, self._nearest(key))
        except (OSError, ValueError) as error:
            return Found(None, f'{path}: not used: {_message(error)}')
        if sidecar['key'] != key:
            return Found(None, f'{path}: not used: its sidecar is of another engine: built '
                               + sidecar['key'].differences(key))
        with contextlib.suppress(OSError):  # a folder that cannot be written can still be read
            os.utime(path)
        return Found(plan, '')

    def get_or_build(
        self,
        key: EngineKey,
        build: Callable[[Path], None],
        info: dict[str, Any] | None = None,
        on_wait: Callable[[str], None] | None = None,
        *,
        on_build: Callable[[str], None] | None = None,
        force: bool = False,
    ) -> Found:
        """Return the plan for a key, built if need be; of several processes one builds.

        Args:
            key: of the engine.
            build: writes the plan to the path that it gets, whole or not at all.
            info: goes into the sidecar, for people.
            on_wait: is told once if another process is building it.
            on_build: is told why it is built, before it is.
            force: build it although there is one.

        Returns:
            The plan.

        Raises:
            CacheError: the folder cannot be written.
            Exception: what `build` raised.
        """
        found = Found(None, 'asked to build it anew') if force else self.lookup(key)
        if found.plan is not None:
            return found
        digest = key.digest()
        with self._lock(digest, on_wait=on_wait):
            if not force:
                found = self.lookup(key)  # another process may have built it meanwhile
            if found.plan is not None:
                return found
            new = self.folder / f'{digest}.new'
            try:
                if on_build is not None:
                    on_build(found.reason)
                start = time.monotonic()
                build(new)
                seconds = round(time.monotonic() - start, 1)
                plan = new.read_bytes()
                try:
                    self._store(key, new, {**(info or {}), 'build_s': seconds})
                except CacheError as error:
                    return Found(plan, found.reason, str(error))
            finally:
                with contextlib.suppress(OSError):
                    new.unlink(missing_ok=True)
        return Found(plan, found.reason)

    def store(self, key: EngineKey, plan: bytes, info: dict[str, Any] | None = None) -> Path:
        """Keep a plan, and remove old ones beyond the limit.

        Args:
            key: what it was built for.
            plan: the serialised engine.
            info: goes into the sidecar, for people.

        Raises:
            CacheError: it cannot be written; what was there before is gone or untouched, never
                mixed.
        """
        digest = key.digest()
        with self._lock(digest):
            new = self.folder / f'{digest}.new'
            try:
                _write(new, plan)
                return self._store(key, new, info or {})
            except OSError as error:
                raise self._unwritable(error) from error
            finally:
                with contextlib.suppress(OSError):
                    new.unlink(missing_ok=True)

    def timing_cache(self, module: str, trt_version: str, sm: int) -> Path:
        """Return the file for the kernel times of one TensorRT on one kind of GPU."""
        return self.folder / f'{module}-{trt_version}-sm{sm}.timing'

    def entries(self) -> list[Entry]:
        """List the engines, the last used first; sizes are compared, contents are not."""
        return self._entries(thorough=False)

    def verify(self) -> list[Entry]:
        """List the engines after reading and hashing every plan."""
        return self._entries(thorough=True)

    def prune(
        self, *, everything: bool = False, unused_days: float | None = None,
        limit_mb: int | None = None,
    ) -> list[Path]:
        """Remove what is broken and what killed processes left; more if asked to.

        What a process is building is left alone.

        Args:
            everything: remove all engines and the measured kernel times.
            unused_days: remove engines that were not used for so long.
            limit_mb: remove the longest unused ones beyond this size (10^6 bytes).

        Returns:
            The removed plans and leftovers.
        """
        removed: list[Path] = []
        oldest = None if unused_days is None else time.time() - 86400 * unused_days
        for entry in self.verify():
            old = oldest is not None and entry.last_used < oldest
            if (everything or old or entry.problem) and self._remove(_id_of(entry.path)):
                removed.append(entry.path)
        for path in self._files():
            if everything and path.suffix == '.timing':
                path.unlink(missing_ok=True)
                removed.append(path)
            match = _OWN.fullmatch(path.name)
            if match is None or match[2] == 'engine':
                continue
            digest = match[1]
            if match[2] in ('engine.json', 'lock') and self._plan(digest).exists():
                continue
            with contextlib.suppress(OSError), self._lock(digest, wait=False) as held:
                if held and match[2] == 'engine.json' and self._plan(digest).exists():
                    continue  # stored since the folder was listed
                if held:
                    path.unlink(missing_ok=True)
                    if match[2] != 'lock':
                        removed.append(path)
                        self._lock_path(digest).unlink(missing_ok=True)
        if limit_mb is not None:
            removed += self._evict(limit_mb)
        return removed

    # --- files

    def _plan(self, digest: str) -> Path:
        return self.folder / f'{digest}.engine'

    def _sidecar(self, digest: str) -> Path:
        return self.folder / f'{digest}.engine.json'

    def _lock_path(self, digest: str) -> Path:
        return self.folder / f'{digest}.lock'

    def _files(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CacheError(f'{self.folder}: {error.strerror or error}') from error

    def _store(self, key: EngineKey, new: Path, info: dict[str, Any]) -> Path:
        """Put a plan in its place; the caller holds the lock.

        The old sidecar goes first and the new one comes last: a plan without one is not used, so
        that an end in between costs the engine and nothing else.
        """
        digest = key.digest()
        path, sidecar = self._plan(digest), self._sidecar(digest)
        try:
            plan = new.read_bytes()
            document = {
                'sidecar_version': _SIDECAR_VERSION, 'key': asdict(key), 'bytes': len(plan),
                'sha256': hashlib.sha256(plan).hexdigest(),
                'info': {'built': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()), **info}}
            text = json.dumps(document, indent=2)
            if len(text) > _MAX_SIDECAR_BYTES:
                raise CacheError(f'info of {len(text)} bytes is too much for a sidecar')
            sidecar.unlink(missing_ok=True)
            os.replace(new, path)
            try:
                _write(sidecar, text.encode())
            except OSError:
                path.unlink(missing_ok=True)
                raise
            _sync_folder(self.folder)
        except OSError as error:
            raise self._unwritable(error) from error
        with contextlib.suppress(CacheError):  # what cannot be removed now is tried again
            self._evict(self.limit_mb)
        return path

    def _unwritable(self, error: OSError) -> CacheError:
        remedy = 'choose another folder for it (backend.cache_dir, --cache-dir)'
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = 'make room, or ' + remedy
        return CacheError(f'{self.folder}: an engine cannot be written: '
                          f'{error.strerror or error}; {remedy}')

    def _read_sidecar(self, digest: str) -> dict[str, Any]:
        """Read and check a sidecar; its key comes parsed."""
        path = self._sidecar(digest)
        try:
            raw = json.loads(_read(path, None, _MAX_SIDECAR_BYTES))
        except FileNotFoundError:
            if self._plan(digest).exists():
                raise ValueError('it has no sidecar') from None
            raise
        except ValueError as error:
            raise ValueError(f'its sidecar is not readable ({_message(error)})') from error
        except RecursionError as error:
            raise ValueError('its sidecar is not readable (nested too deep)') from error
        if not isinstance(raw, dict) or raw.get('sidecar_version') != _SIDECAR_VERSION:
            raise ValueError('its sidecar is of another version of depth-node')
        if not (type(raw.get('bytes')) is int and isinstance(raw.get('sha256'), str)
                and isinstance(raw.get('info'), dict)):
            raise ValueError('its sidecar lacks what this version of depth-node writes')
        key = EngineKey.from_json(raw.get('key'))
        if key.digest() != digest:
            raise ValueError(f'its sidecar is of another engine: built for {key.gpu_name} and '
                             f'TensorRT {key.trt_version}')
        return {**raw, 'key': key}

    def _entries(self, *, thorough: bool) -> list[Entry]:
        found = []
        for path in self._files():
            match = _PLAN.fullmatch(path.name)
            if match is None:
                continue
            try:
                status = path.lstat()
            except OSError:  # removed meanwhile
                continue
            key, info, problem = None, {}, ''
            try:
                sidecar = self._read_sidecar(match[1])
                key, info = sidecar['key'], sidecar['info']
                if thorough:
                    _compare(_read(path, sidecar['bytes']), sidecar)
                else:
                    _check_file(status, sidecar['bytes'])
            except FileNotFoundError:  # removed meanwhile
                continue
            except (OSError, ValueError) as error:
                problem = _message(error)
            found.append(Entry(path, status.st_size, status.st_mtime, key, info, problem))
        return sorted(found, key=lambda entry: -entry.last_used)

    def _nearest(self, key: EngineKey) -> str:
        """Say that there is no engine, and how the nearest one of the same network differs."""
        for entry in self.entries():
            if entry.key is not None and entry.key.onnx_sha256 == key.onnx_sha256:
                return (f'no engine for this in {self.folder}; {entry.path.name} was built '
                        + entry.key.differences(key))
        return f'no engine for this in {self.folder}'

    def _evict(self, limit_mb: int) -> list[Path]:
        """Remove the longest unused engines until the rest fits the limit.

        The one that is just being stored stays: its lock is held.
        """
        entries = self.entries()
        total = sum(entry.nbytes for entry in entries)
        removed = []
        for entry in reversed(entries):
            if total <= limit_mb * 1_000_000:
                break
            if self._remove(_id_of(entry.path)):
                total -= entry.nbytes
                removed.append(entry.path)
        return removed

    def _remove(self, digest: str) -> bool:
        """Remove an engine, unless a process is at work on it."""
        try:
            with self._lock(digest, wait=False) as held:
                if not held:
                    return False
                self._sidecar(digest).unlink(missing_ok=True)
                self._plan(digest).unlink(missing_ok=True)
                self._lock_path(digest).unlink(missing_ok=True)
                return True
        except OSError as error:
            raise CacheError(f'{self._plan(digest)}: cannot be removed: '
                             f'{error.strerror or error}') from error

    @contextlib.contextmanager
    def _lock(
        self, digest: str, *, wait: bool = True, on_wait: Callable[[str], None] | None = None
    ) -> Iterator[bool]:
        """Hold the lock of one engine; yields False where it is held elsewhere and wait is not.

        The kernel releases it when the process ends, however that happens.
        """
        path = self._lock_path(digest)
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                                 0o600)
            except OSError as error:
                raise self._unwritable(error) from error
            try:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not wait:
                        yield False
                        return
                    if on_wait is not None:
                        on_wait('another process is building this engine; waiting for it')
                        on_wait = None
                    fcntl.flock(handle, fcntl.LOCK_EX)
                if not _is_at(handle, path):  # removed by `prune` while this one waited
                    continue
                yield True
                return
            finally:
                os.close(handle)


# --- helpers


def _id_of(path: Path) -> str:
    return path.name.partition('.')[0]


def _shown(value: Any) -> str:
    if isinstance(value, Profile):
        return ', '.join(f'{height}x{width}' for height, width in value)
    return 'the default' if value is None else str(value)


def _message(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)[:200]


def _is_at(handle: int, path: Path) -> bool:
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), named)


def _read(path: Path, nbytes: int | None, limit: int | None = None) -> bytes:
    """Read a regular file of a known size, or up to a limit; never waits for a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, 'rb') as stream:
        status = os.fstat(handle)
        _check_file(status, nbytes)
        if limit is not None and status.st_size > limit:
            raise ValueError(f'{status.st_size} bytes, at most {limit} are expected')
        return stream.read()


def _check_file(status: os.stat_result, nbytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError('it is no regular file')
    if nbytes is not None and status.st_size != nbytes:
        raise ValueError(f'it has {status.st_size} bytes, its sidecar says {nbytes}')


def _compare(plan: bytes, sidecar: dict[str, Any]) -> None:
    digest = hashlib.sha256(plan).hexdigest()
    if len(plan) != sidecar['bytes'] or digest != sidecar['sha256']:
        raise ValueError(f'its SHA-256 is {digest[:12]}..., its sidecar says '
                         f'{sidecar["sha256"][:12]}...: it was changed after it was built')


def _write(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix='.part')
    try:
        with os.fdopen(handle, 'wb') as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system knows it
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
