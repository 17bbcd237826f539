"""Results shared through DVC: a folder and an S3 bucket as remotes, a fresh clone that computes nothing, and damage of
every kind on the way. S3 is moto's server on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = """
stages:
  world:
    cmd: python stages/world.py --world.test_count 4 --world.seeds 1
    deps: [stages/world.py, maskmill/world.py]
    params: [world]
    outs: [data/world]
  table:
    cmd: python -c "import shutil; shutil.copy('data/world/index.csv', 'data/table.csv')"
    deps: [data/world]
    outs: [data/table.csv]
"""
UP_TO_DATE = "Data and pipelines are up to date."


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """Of the commands: this interpreter first, made-up credentials, and no way to a real store."""
    top = tmp_path_factory.mktemp("home")
    kept = {k: v for k, v in os.environ.items()
            if not k.startswith(("DVC_", "AWS_", "GIT_")) and not k.lower().endswith("_proxy")}  # fmt: skip
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(top),
        "DVC_SITE_CACHE_DIR": str(top / "site"), "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1",
        "AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip


@dataclass(frozen=True)
class Repository:
    """A clone, and the commands that a person types in it."""

    folder: Path
    env: dict[str, str]

    def run(self, *command: str) -> Finished:
        got = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True)
        return Finished(got.returncode, got.stdout, got.stderr)

    def dvc(self, *argv: str) -> str:
        got = self.run(sys.executable, "-m", "dvc", *argv)
        assert got.code == 0, f"dvc {' '.join(argv)}\n{got.out}\n{got.err}"
        return got.out

    def git(self, *argv: str) -> str:
        got = self.run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", *argv)
        assert got.code == 0, got.err
        return got.out

    def verify(self, *argv: str) -> Finished:
        return self.run(sys.executable, "-m", "maskmill.verify", *argv)

    def clone(self, folder: Path) -> Repository:
        self.git("clone", "-q", str(self.folder), str(folder))
        return Repository(folder, self.env)

    def empty(self) -> None:
        """As a clone into which nothing was pulled yet."""
        shutil.rmtree(self.folder / ".dvc/cache", ignore_errors=True)
        for path in ("data/world", "data/table.csv"):
            shutil.rmtree(self.folder / path, ignore_errors=True)
            (self.folder / path).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def origin(tmp_path_factory, env) -> Repository:
    """A small pipeline with this project's own stage, run once and committed."""
    folder = tmp_path_factory.mktemp("sharing") / "origin"
    folder.mkdir()
    shutil.copytree(ROOT / "maskmill", folder / "maskmill", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "stages").mkdir()
    shutil.copy(ROOT / "stages/world.py", folder / "stages")
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copy(ROOT / ".dvcignore", folder)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / ".gitignore").write_text("__pycache__/\n/data/\n")
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/.gitignore", folder / ".dvc")
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    autostage = false\n"
                                        "[parsing]\n    bool = boolean_optional\n    list = nargs\n")  # fmt: skip
    made = Repository(folder, env | {"PYTHONPATH": str(folder)})
    made.git("init", "-q")
    made.dvc("repro", "-q")
    made.git("add", "-A")
    made.git("commit", "-qm", "made")
    return made


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def biggest(repository: Repository) -> tuple[str, bytes, str]:
    """A file of the set, its bytes, and the name of its object."""
    import hashlib

    path = max((repository.folder / "data/world/images").iterdir(), key=lambda p: p.stat().st_size)
    data = path.read_bytes()
    md5 = hashlib.md5(data).hexdigest()
    return path.relative_to(repository.folder).as_posix(), data, f"files/md5/{md5[:2]}/{md5[2:]}"


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)


def share(origin: Repository, url: str, *settings: tuple[str, str]) -> None:
    """What the README's section on sharing says."""
    origin.dvc("remote", "add", "--force", "--default", "store", url)
    config = origin.folder / ".dvc/config"
    with config.open("a") as file:  # as dvc remote modify store KEY VALUE, in one go
        file.writelines(f"    {key} = {value}\n" for key, value in (("verify", "true"), *settings))
    assert f"url = {url}" in config.read_text() or url.startswith("/")
    origin.git("commit", "-qam", "a remote")
    origin.dvc("push", "-q")


def pulled(origin: Repository, folder: Path) -> Repository:
    """A fresh clone, pulled: the same files, and nothing to compute."""
    clone = origin.clone(folder)
    assert not (clone.folder / "data").exists()
    clone.dvc("pull", "-q")
    assert tree(clone.folder / "data") == tree(origin.folder / "data")
    assert UP_TO_DATE in clone.dvc("repro")
    assert clone.git("status", "--porcelain") == ""
    return clone


def refuses_what_is_damaged(clone: Repository, file: str) -> None:
    """``dvc pull`` from a remote with ``verify = true``: no damaged byte reaches the cache or the workspace."""
    clone.empty()
    got = clone.run(sys.executable, "-m", "dvc", "pull")
    assert got.code != 0 and not (clone.folder / file).exists()
    found = clone.verify()
    assert found.code == 1 and "damaged" not in found.out and "truncated" not in found.out


def test_a_folder_as_remote(origin, tmp_path):
    share(origin, str(tmp_path / "store"))
    clone = pulled(origin, tmp_path / "clone")
    file, data, name = biggest(origin)
    thing = tmp_path / "store" / name
    thing.chmod(0o644)
    thing.write_bytes(data[:7])
    refuses_what_is_damaged(clone, file)

    found = origin.verify("--remote", "store")
    line = f"    {thing}: truncated to 7 of {len(data)} bytes; {file}"
    assert found.code == 1 and found.out.splitlines()[:2] == ["data/world, made by stage world:", line]
    assert origin.verify("--remote", "store", "--mend").code == 0
    clone.dvc("pull", "-q")
    assert tree(clone.folder / "data") == tree(origin.folder / "data")


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket on moto's server: (client, its name, address of the server)."""
    pytest.importorskip("dvc_s3", reason="needs dvc-s3: pip install 'dvc-s3>=3.3,<4'")
    server = pytest.importorskip("moto.server", reason="needs moto's server: pip install 'moto[server]>=5.2,<6'")
    import boto3
    from botocore.config import Config

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    address = "http://{}:{}".format(*running.get_host_and_port())
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="made-up",
                          aws_secret_access_key="made-up", config=Config(proxies={}))  # fmt: skip
    client.create_bucket(Bucket="masks")
    yield client, "masks", address
    running.stop()


def test_s3(origin, bucket, tmp_path):
    client, place, address = bucket
    share(origin, f"s3://{place}/shared", ("endpointurl", address))
    clone = pulled(origin, tmp_path / "clone")
    file, data, name = biggest(origin)
    key, shown = f"shared/{name}", f"{place}/shared/{name}"
    assert client.get_object(Bucket=place, Key=key)["Body"].read() == data
    client.put_object(Bucket=place, Key=key, Body=flipped(data))
    table = client.list_objects_v2(Bucket=place)["Contents"]
    refuses_what_is_damaged(clone, file)

    for more in ((), ("--quick",)):
        found = origin.verify("--remote", "store", *more)
        line = f"    {shown}: damaged, {len(data)} bytes that are not those that were made; {file}"
        assert found.code == 1 and found.out.splitlines()[:2] == ["data/world, made by stage world:", line]
    client.delete_object(Bucket=place, Key=key)
    found = origin.verify("--remote", "store")
    assert found.code == 1 and f"    {shown}: missing; {file}\n" in found.out and found.out.count("missing") == 1

    assert origin.verify("--remote", "store", "--mend").code == 0
    assert len(client.list_objects_v2(Bucket=place)["Contents"]) == len(table)
    clone.dvc("pull", "-q")
    assert tree(clone.folder / "data") == tree(origin.folder / "data")


def test_a_bucket_that_cannot_be_reached(origin, bucket):
    pytest.importorskip("dvc_s3", reason="needs dvc-s3: pip install 'dvc-s3>=3.3,<4'")
    origin.dvc("remote", "add", "--force", "gone", "s3://nothing/here")
    with (origin.folder / ".dvc/config").open("a") as file:
        file.write("    endpointurl = http://127.0.0.1:9\n    connect_timeout = 1\n")
    found = Repository(origin.folder, origin.env | {"AWS_MAX_ATTEMPTS": "1"}).verify("--remote", "gone", "--quick")
    assert found.code == 2 and found.err.startswith("error: remote gone: ") and found.err.count("\n") == 1
