"""What must be set before the libraries are imported: threads, no GPU, a Hub that is nobody else's, and a fast disk.

No test reaches the real Hub: its address is a port of this machine, where hub_server listens if a test asks for it. Nor
are the user's login and cache seen.
"""

import os
import socket
import tempfile

HOME = tempfile.TemporaryDirectory()
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    HUB = f"http://127.0.0.1:{free.getsockname()[1]}"
if os.environ.get("LD3M_TEST_GPU") != "1":  # most tests compare with what a CPU computes, to the bit
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two busy processes with two threads each crawl
os.environ |= {"HF_ENDPOINT": HUB, "HF_HOME": HOME.name, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
os.environ["NO_PROXY"] = "127.0.0.1"
os.environ.pop("HF_TOKEN", None)
os.fsync = lambda _: None  # what tests write need not outlive the machine, and a run waits for the disk sixty times
