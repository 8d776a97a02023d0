"""Signed bundles: only what the key's owner signed is opened."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_kit import write
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from test_cli import refused
from test_cli import tvmsep as command

from tvmsep.bundle import Bundle, Package
from tvmsep.bundle.signature import sign, signature_path
from tvmsep.contracts import BundleError, InputError, Target

UNZIP = (
    "import sys, zipfile as z; sys.stdout.buffer.write(z.ZipFile(sys.argv[1]).read(sys.argv[2]))"
)
PEM = serialization.Encoding.PEM
PLAIN = serialization.NoEncryption()


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A new key pair, as OpenSSL writes them."""
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(PEM, form))
    return private, public


def test_only_the_signer_is_trusted(built: Path, target: Target, tmp_path: Path) -> None:
    bundle = write(tmp_path / "net.tvmsep", built, target)
    whole = bundle.read_bytes()
    private, public = keys(tmp_path, "ours")
    _, other = keys(tmp_path, "other")
    with pytest.raises(BundleError, match=r"is not signed: there is no .*net.tvmsep.sig"):
        Package(bundle, trust=public)
    made = sign(bundle, private)
    assert made == signature_path(bundle) and bundle.read_bytes() == whole
    assert sign(bundle, private).read_bytes() == made.read_bytes(), "Ed25519 is deterministic"
    with Bundle.load(bundle, 1, trust=public) as net:
        assert net.threads == 1
    with pytest.raises(BundleError, match=r"was not signed with the key of .*other.pub"):
        Package(bundle, trust=other)
    write(bundle, built, target, licence="another")  # sound, but not what was signed
    Package(bundle).close()
    with pytest.raises(BundleError, match="of another bundle, or .* was altered"):
        Bundle.load(bundle, 1, trust=public)


def test_a_changed_member_is_found_even_without_verify(
    built: Path, target: Target, tmp_path: Path
) -> None:
    from tvmsep.bundle.archive import Archive, write_archive

    bundle = write(tmp_path / "net.tvmsep", built, target)
    private, public = keys(tmp_path, "ours")
    sign(bundle, private)
    with Archive(bundle) as archive:
        contents = {name: archive.read(name) for name in archive.members}
    contents["relax/threads1.txt"] = b"0ne"
    write_archive(bundle, contents)
    with (
        pytest.raises(BundleError, match="tampered"),
        Package(bundle, verify=False, trust=public) as package,
    ):
        package.check_members()
    with pytest.raises(BundleError, match="tampered"):
        sign(bundle, private)


def test_files_that_are_no_signature_or_key(built: Path, target: Target, tmp_path: Path) -> None:
    bundle = write(tmp_path / "net.tvmsep", built, target)
    private, public = keys(tmp_path, "ours")
    good = sign(bundle, private).read_text()
    for text in ("", "{}", good[:40], good.replace("ed25519", "none"), good + " " * 9000,
                 good.replace('"format": 1', '"format": 2')):  # fmt: skip
        signature_path(bundle).write_text(text)
        with pytest.raises(BundleError, match="is no signature that is known here"):
            Package(bundle, trust=public)
    value = good.split('"signature": "')[1]
    for wrong in ("00" * 64, value[2:128], "zz"):
        signature_path(bundle).write_text(good.replace(value.split('"')[0], wrong))
        with pytest.raises(BundleError, match="not signed with|no signature"):
            Package(bundle, trust=public)
    for path in (tmp_path / "nosuch", tmp_path, bundle, private):
        with pytest.raises(InputError, match="key"):
            Package(bundle, trust=path)
    curve = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ec").write_bytes(
        curve.private_bytes(PEM, serialization.PrivateFormat.PKCS8, PLAIN)
    )
    with pytest.raises(InputError, match="no Ed25519 key"):
        sign(bundle, tmp_path / "ec")
    with pytest.raises(InputError, match="no private key in PEM"):
        sign(bundle, public)


def test_openssl_checks_signatures_as_the_page_says(
    built: Path, target: Target, tmp_path: Path
) -> None:
    bundle = write(tmp_path / "net.tvmsep", built, target)
    private, public = keys(tmp_path, "ours")
    public.rename(tmp_path / "public.pem")
    sign(bundle, private)
    page = (Path(__file__).parents[1] / "SECURITY.md").read_text()
    script = page.partition("```bash\n")[2].partition("```")[0]
    if shutil.which("unzip") is None:  # as it does, by another name
        script = f'unzip() {{ {sys.executable} -c \'{UNZIP}\' "$2" "$3"; }}\n' + script

    def ends_with() -> int:
        command = ["bash", "-c", script]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode

    assert ends_with() == 0
    pem = (tmp_path / "public.pem").read_bytes()
    key = serialization.load_pem_public_key(pem)
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    (tmp_path / "raw").write_bytes(raw)
    (tmp_path / "public.pem").unlink()
    convert = page.partition("becomes `public.pem` by\n`")[2].partition("`")[0]
    subprocess.run(["bash", "-c", convert], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "public.pem").read_bytes() == pem and ends_with() == 0
    _, other = keys(tmp_path, "other")
    other.rename(tmp_path / "public.pem")
    assert ends_with() != 0
    (tmp_path / "public.pem").write_bytes(pem)
    write(bundle, built, target, licence="another")
    assert ends_with() != 0


def test_signing_as_a_command(built: Path, target: Target, tmp_path: Path) -> None:
    bundle = str(write(tmp_path / "net.tvmsep", built, target))
    private, public = map(str, keys(tmp_path, "ours"))
    _, other = map(str, keys(tmp_path, "other"))
    words = ["--require-signature", public]
    refused("bench", bundle, *words, cwd=tmp_path, says=["is not signed"])
    done = command("sign", bundle, "--key", private, cwd=tmp_path)
    assert done.returncode == 0 and "wrote" in done.stdout, done.stderr
    done = command("verify", bundle, "--signature", public, cwd=tmp_path)
    assert done.returncode == 0 and "is signed with the key of" in done.stdout
    assert command("bench", bundle, *words, "--runs", "4", cwd=tmp_path).returncode == 0
    refused("verify", bundle, "--signature", other, cwd=tmp_path, says=["was not signed with"])
    refused("run", bundle, "-i", "x.npy", "--require-signature", other, cwd=tmp_path,
            says=["was not signed with"])  # fmt: skip
