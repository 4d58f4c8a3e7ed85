"""`vitfit agent`: measures ONNX files on this device for the jobs of a server on another machine.

The agent asks for tasks by long polling, fetches files by their SHA-256 and checks them, measures them in a separate
process (vitfit/measuring.py), and sends the raw samples back. It executes nothing but ONNX files. Server and agent can
both be restarted at any time, because the server offers a task until it is answered.

An agent does not trust its server, because a proxy or a page for logging in may answer in the server's place. Every
answer is read up to a size, and every value is checked before the agent uses it.
"""

from vitfit.agent.agent import PROTOCOL, Agent
from vitfit.agent.file_cache import MOST_FILE_BYTES

__all__ = ["MOST_FILE_BYTES", "PROTOCOL", "Agent"]
