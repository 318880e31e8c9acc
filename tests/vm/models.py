"""A provider of models beside the hosts, which only their gateways reach, and a host's gateway."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from typing import Final

from tests.fakes import model_provider
from tests.vm import host, lab

#: The keys that hosts have, by the way they have them: a file of the daemon's, and what systemd hands over, the last
#: one encrypted on the disk.
KEYS: Final = {
    "anthropic": "sk-file-0123456789", "gemini": "sk-second-0123456789", "openai": "sk-handed-0123456789",
    "spare": "sk-sealed-0123456789",
}  # fmt: skip
#: Where each key is on a host, and may be.
STORES: Final = {
    "anthropic": "/etc/agentina/credentials/anthropic",
    "gemini": "/etc/agentina/credentials/gemini",
    "openai": "/etc/keys/openai",
}
_CREDENTIALS: Final = f"""
[Service]
LoadCredential=openai:{STORES["openai"]}
"""
_SEALED: Final = """
[Service]
LoadCredentialEncrypted=spare:/etc/keys/spare.sealed
"""


@contextlib.contextmanager
def running(provider: model_provider.ModelProvider, run_lab: lab.Lab) -> Iterator[None]:
    """Serve in a thread of its own, by TLS and on all addresses, so that hosts find it at 10.0.2.2."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(run_lab.certificate, run_lab.certificate.with_name("key.pem"))
    with model_provider.in_thread(provider, listen="0.0.0.0", tls=tls):
        yield


def give(there: host.Host, port: int) -> None:
    """Give a host, whose instance is activated, a gateway with several providers at ``port`` of this machine."""
    url = {"url": f"https://10.0.2.2:{port}", "ca_file": lab.CERTIFICATE}
    providers = [
        {"name": "spare", "api": "anthropic", "credentials": ["spare"], "models": ["spare-*"], **url},
        {"name": "anthropic", "api": "anthropic", "credentials": ["anthropic"], **url},
        {"name": "gemini", "api": "gemini", "credentials": ["gemini"], **url},
        {"name": "openai", "api": "openai", "credentials": ["openai"], **url},
    ]
    settings = {"providers": providers, "prices": {"gpt-*": {"input": 1, "output": 2}}}
    there.put(json.dumps(settings).encode(), "/etc/agentina/gateway.yaml")
    there.run("install -d -o agentina -m 700 /etc/agentina/credentials; install -d -m 700 /etc/keys")
    for name in ("anthropic", "gemini"):
        there.run(f"install -o agentina -m 600 /dev/stdin {STORES[name]}", text=KEYS[name])
    there.run(f"install -m 600 /dev/stdin {STORES['openai']}", text=KEYS["openai"])
    drop_ins = "/etc/systemd/system/agentina@.service.d"
    there.run(f"mkdir -p {drop_ins}")
    there.put(_CREDENTIALS.encode(), f"{drop_ins}/keys.conf")
    there.run("systemd-creds encrypt --with-key=host --name=spare - /etc/keys/spare.sealed", text=KEYS["spare"])
    there.put(_SEALED.encode(), f"{drop_ins}/sealed.conf")
    there.run("echo 'gateway: /etc/agentina/gateway.yaml' >> /etc/agentina/default.yaml")
    there.run("systemctl daemon-reload; systemctl restart agentina@default")
