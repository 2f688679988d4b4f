"""A peer's service of a few lines: the artifact's own pipeline behind the standard library's HTTP server.

It starts a process of its own, as servers do, which must not outlive it.
"""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pipelines


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = json.dumps(classify(asked["inputs"])[0]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    classify = pipelines.load(os.environ["PEER_MODEL"])
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PEER_PORT"])), Handler).serve_forever()
