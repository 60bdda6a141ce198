"""Credentials of the embedded parts, generated at first start and kept with the data they protect."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from everloop.stack.home import Home
from everloop.stack.private_file import write_private

__all__ = ["Credentials", "obtain", "ray_token_path"]


@dataclass(frozen=True)
class Credentials:
    """Secrets of one stack."""

    s3_access_key: str
    s3_secret_key: str
    ray_token: str


def ray_token_path(home: Home) -> Path:
    """Return the file that Ray reads its token from."""
    return home.secrets / "ray.token"


def obtain(home: Home) -> Credentials:
    """Return the credentials of `home`, generating them where there are none."""
    path = home.secrets / "credentials.json"
    if path.exists():
        found = Credentials(**json.loads(path.read_text()))
    else:
        found = Credentials(
            s3_access_key=f"EVERLOOP{secrets.token_hex(6).upper()}",
            s3_secret_key=secrets.token_urlsafe(30),
            ray_token=secrets.token_hex(32),
        )
        write_private(path, json.dumps(asdict(found), indent=2))
    write_private(ray_token_path(home), found.ray_token)
    return found
