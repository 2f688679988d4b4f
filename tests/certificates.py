"""Certificates that a test makes itself, with openssl."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Authority:
    """Its own certificate is ca.pem in `folder`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", "/CN=Tests", "-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem"),
        )  # fmt: skip
        return cls(folder)

    def issue(self, file: str, name: str) -> None:
        """`file`.pem and `file`.key for a server or a client of that name."""
        made, key = self.folder / f"{file}.pem", self.folder / f"{file}.key"
        request, extensions = self.folder / f"{file}.csr", self.folder / f"{file}.ext"
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", str(key), "-out", str(request),
        )  # fmt: skip
        extensions.write_text(f"subjectAltName=DNS:{name},IP:127.0.0.1\n", encoding="ascii")
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.folder / "ca.pem"), "-CAkey",
            str(self.folder / "ca.key"), "-CAcreateserial", "-days", "2",
            "-extfile", str(extensions), "-out", str(made),
        )  # fmt: skip


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
