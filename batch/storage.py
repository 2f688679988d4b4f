"""Storage: where outputs lie: on this machine, or where fsspec reaches. A file is replaced whole, or not at all."""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from pipelines.errors import ConfigurationError, SextetError, first_line
from stores.address import UrlAddress, remote
from stores.filesystem import opened


class Storage(ABC):
    """Names are paths within it. Errors are those of the system or of a client; `explained` words them."""

    def __init__(self, output: str, path: str) -> None:
        self._shown, self.path = output, path

    @staticmethod
    def of(output: str) -> "Storage":
        """Raises ConfigurationError for a URL that no installed filesystem reaches."""
        address = remote(output)
        if isinstance(address, UrlAddress):
            filesystem, path = opened(address)
            return UrlStorage(output, path, filesystem)
        return LocalStorage(output, str(Path(output).absolute()))

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise ConfigurationError of one line in the place of what else is raised."""
        try:
            yield
        except SextetError:
            raise
        except Exception as error:
            detail = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)[:120]
            raise ConfigurationError(
                f"--output {self._shown} cannot be written ({type(error).__name__}: {detail}); what is finished stays, "
                "and the same command goes on with it"
            ) from None

    def local(self, name: str) -> Path | None:
        """The file on this machine; None where it is not on it."""
        return None

    @abstractmethod
    def named(self, name: str) -> str:
        """The name as the user would write it."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """None where there is no such file."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Replace a file."""

    @abstractmethod
    def writing(self, name: str) -> Any:
        """A context: a file to write to, which has its name when the block ends."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The files in a folder, which need not be there."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """A file, or a folder with all that is in it; it need not be there."""


class LocalStorage(Storage):
    """Files of this machine."""

    def local(self, name: str) -> Path | None:
        return Path(name)

    def named(self, name: str) -> str:
        return os.path.relpath(name) if not Path(self._shown).is_absolute() else name

    def exists(self, name: str) -> bool:
        return Path(name).exists()

    def read(self, name: str) -> bytes | None:
        try:
            return Path(name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        with self.writing(name) as file:
            file.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.partial")  # of a run that was killed: overwritten
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    def names(self, folder: str) -> list[str]:
        return [one.name for one in Path(folder).iterdir()] if Path(folder).is_dir() else []

    def remove(self, name: str) -> None:
        if Path(name).is_dir():
            shutil.rmtree(name)
        else:
            Path(name).unlink(missing_ok=True)


class UrlStorage(Storage):
    """Objects behind a URL. An upload becomes an object when it is complete."""

    def __init__(self, output: str, path: str, filesystem: Any) -> None:
        super().__init__(output, path)
        self._filesystem = filesystem

    def named(self, name: str) -> str:
        return str(self._filesystem.unstrip_protocol(name))

    def exists(self, name: str) -> bool:
        return bool(self._filesystem.exists(name))

    def read(self, name: str) -> bytes | None:
        try:
            return cast(bytes, self._filesystem.cat_file(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        self._made(name, lambda: self._filesystem.pipe_file(name, content))

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        file = self._made(name, lambda: self._filesystem.open(name, "wb"))
        try:
            yield file
        except BaseException:
            file.discard()
            file.closed = True  # it would upload what it has when it is closed
            raise
        file.close()

    def _made(self, name: str, make: Callable[[], Any]) -> Any:
        """Make a file, in a folder that is made where the filesystem has folders and lacks it."""
        try:
            return make()
        except FileNotFoundError:
            self._filesystem.makedirs(name.rpartition("/")[0], exist_ok=True)
            return make()

    def names(self, folder: str) -> list[str]:
        try:
            found = self._filesystem.ls(folder, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return [one.rstrip("/").rpartition("/")[2] for one in found]

    def remove(self, name: str) -> None:
        if self._filesystem.exists(name):
            self._filesystem.rm(name, recursive=True)
