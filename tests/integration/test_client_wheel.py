"""The client's own wheel, in a process that has nothing but it and HTTP."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.fakes import FakeWorker, answering, write_checkpoint
from tests.gateways import serving

ROOT = Path(__file__).resolve().parents[2]
#: All that may be imported beside the standard library and the wheel.
NEEDED = (
    *("httpx", "httpcore", "httpx_sse", "h11", "anyio", "certifi", "idna", "sniffio"),
    "typing_extensions",
)

SCRIPT = """
import importlib.abc, json, sys

folder, site, url, needed = sys.argv[1:]
needed = set(needed.split(","))

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in needed | {"baton"} and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"not here: {name}", name=name)

sys.path[:] = [path for path in sys.path if not path.endswith("site-packages")] + [folder, site]
sys.meta_path.insert(0, Nothing())

from baton import Client
from baton.errors import ModelNotFound
import baton

assert baton.__file__.startswith(folder), baton.__file__
with Client(url, admin="http://127.0.0.1:1") as client:
    text = client.generate("hi", max_new_tokens=50).text
    try:
        client.cluster().drain("127.0.0.1:1", grace=0.0)
    except ImportError as error:
        refused = str(error)
try:
    Client(url, model="another").generate("hi")
except ModelNotFound as error:
    code = error.code
print(json.dumps({"text": text, "refused": refused, "code": code}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel in it, built from a copy: a build leaves things behind."""
    copy, target = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("installed")
    for name in ("client", "baton"):
        leave = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run(
        [*pip, "wheel", *offline, "--wheel-dir", str(copy), str(copy / "client")], check=True
    )
    [wheel] = copy.glob("baton_client-*.whl")
    subprocess.run([*pip, "install", *offline, "--target", str(target), str(wheel)], check=True)
    held = {name.split("/")[1] for name in zipfile.ZipFile(wheel).namelist() if "dist" not in name}
    assert not held & {"cli", "kv", "membership", "settings", "wire.py"}, "the client alone"
    return target


async def test_it_works_without_torch_and_grpc(installed: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "toy")
    site = str(Path(httpx.__file__).parent.parent)
    worker = FakeWorker(script=answering("hello"), local_prefill=True)
    async with serving(checkpoint, [worker]) as gateway:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", SCRIPT),
            *(str(installed), site, gateway.url, ",".join(NEEDED)),
            stdout=asyncio.subprocess.PIPE,
            cwd=tmp_path,
        )
        said, _ = await child.communicate()
    assert child.returncode == 0
    assert json.loads(said) == {
        "text": "hello",
        "refused": "telling workers what to do needs gRPC: pip install 'baton-client[grpc]'",
        "code": "model_not_found",
    }


def test_with_grpc_it_tells_workers(installed: Path, tmp_path: Path) -> None:
    """The extra needs no more than it names."""
    script = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "for name in ('pydantic', 'pydantic_settings', 'yaml', 'torch', 'rich'):\n"
        "    sys.modules[name] = None\n"
        "import baton.client.rpc as rpc\n"
        "assert rpc.__file__.startswith(sys.path[0])\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True, cwd=tmp_path)
