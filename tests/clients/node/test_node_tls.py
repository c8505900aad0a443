"""Mutual TLS: the Node client shows its certificate, to a server that takes nobody without one."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PROGRAM = """
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
const [built, folder] = process.argv.slice(2);
const { ServerCredentials } = createRequire(`${built}/package.json`)("@grpc/grpc-js");
const { SidecarClient } = await import(pathToFileURL(`${built}/build/src/index.js`));
const { receipt, ScriptedSidecar } = await import(pathToFileURL(`${built}/build/tests/support/sidecar.js`));
const file = (name) => readFileSync(`${folder}/${name}.pem`);
const pair = { cert_chain: file("server"), private_key: file("server-key") };
const credentials = ServerCredentials.createSsl(file("ca"), [pair], true);
const sendToUser = () => ({ receipt: receipt("m") });
const sidecar = await ScriptedSidecar.start({ sendToUser }, "127.0.0.1:0", credentials);

async function send(tls) {
  const client = new SidecarClient({ endpoint: sidecar.endpoint, tls, timeoutS: 5, maxAttempts: 1 });
  try {
    return (await client.sendToUser({ isolationKey: "k", contextToken: "t" }, { json: 1 })).messageId;
  } catch (error) {
    return error.code;
  } finally {
    await client.close();
  }
}

const [ca, serverName] = [file("ca"), "sidecar.test"];
const answers = [await send({ ca, cert: file("client"), key: file("client-key"), serverName })];
answers.push(await send({ ca, serverName }), await send({ ca, cert: file("client"), key: file("client-key") }));
console.log(answers.join());
sidecar.stop();
"""


def certificates(folder: Path) -> None:
    """An authority, and by it a server's certificate for `sidecar.test` and a client's."""
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    for name in ("ca", "server", "client"):
        key = authority if name == "ca" else ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = issuer if name == "ca" else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("sidecar.test")]), critical=False)
            .sign(authority, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}-key.pem").write_bytes(private)


@pytest.mark.timeout(180)
def test_mutual_tls(built: Path, tmp_path: Path) -> None:
    """With its certificate; without one; and to a server whose certificate is for another name."""
    certificates(tmp_path)
    (tmp_path / "program.mjs").write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(
        ["node", "program.mjs", str(built), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "m,UNAVAILABLE,UNAVAILABLE\n", done.stderr
