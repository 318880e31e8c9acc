"""What a task's tools are told: where its way out is, and who the task is. Pure.

Each task has an address of its own in 127.0.0.0/8, which is loopback as a whole, made from its id: so it is known
before the task starts and can be written into configuration, and tasks that share a host's loopback do not meet.
"""

from __future__ import annotations

import hashlib

from agentina.gateway import forwarder


def address(task_id: str) -> str:
    """The loopback address of a task."""
    one, two, three = hashlib.sha256(task_id.encode()).digest()[:3]
    # 127.0.0.0/16 is left to everybody else; no part is 0 or 255 at the end.
    return f"127.{1 + one % 254}.{two}.{1 + three % 254}"


def socket_name(task_id: str) -> str:
    """The file name of a task's socket.

    Its own, so that an order that comes late, when another task has the same place already, hurts nobody.
    """
    return f"gateway-{task_id}.sock"


def tell(task_id: str, token: str) -> dict[str, str]:
    """The variables."""
    host = address(task_id)
    base = f"http://{host}:{forwarder.PORT}"
    proxy = f"http://task:{token}@{host}:{forwarder.PORT}"
    local = f"localhost,127.0.0.1,::1,{host}"
    return {
        "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "http_proxy": proxy, "https_proxy": proxy,
        "NO_PROXY": local, "no_proxy": local,
        "ANTHROPIC_BASE_URL": f"{base}/anthropic", "ANTHROPIC_API_KEY": token,
        "OPENAI_BASE_URL": f"{base}/openai/v1", "OPENAI_API_KEY": token,
        "GOOGLE_GEMINI_BASE_URL": f"{base}/gemini", "GEMINI_API_KEY": token,
        "AGENTINA_GATEWAY": base,
    }  # fmt: skip
