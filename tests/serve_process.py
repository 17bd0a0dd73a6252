"""The server under test as a process, and what is asked of it without a client of its own."""
import json
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request


class Server:
    """Runs serve on a free port for as long as the block lasts, and looks at how it ends."""

    def __init__(self, program, *arguments, threads=1):
        # Freed memory that a sanitizer keeps for a while is no growth.
        sanitizer = ":".join(filter(None, (os.environ.get("ASAN_OPTIONS"), "quarantine_size_mb=8")))
        self.process = subprocess.Popen([program, "--device", "cpu", "--port", "0", *arguments], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env={**os.environ, "OMP_NUM_THREADS": str(threads),
                                             "ASAN_OPTIONS": sanitizer})
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"serve did not begin: {line!r} {self.process.communicate()[1]}")
        self.address = line.split()[-1]
        self.errors = []
        self.is_told = False
        self.reader = threading.Thread(target=lambda: self.errors.extend(self.process.stderr))
        self.reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        status = self.stop()
        if exception[0] is None:
            assert status == 0, f"serve ended with {status}: {''.join(self.errors)}"
            noise = [line for line in self.errors if not re.match(r"\[W\d", line)]
            assert not noise, f"serve wrote {noise}"

    def tell(self):
        """That it has to end: once, since a second signal would end it at once."""
        self.is_told = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self):
        if not self.is_told:
            self.tell()
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = "nothing for a minute after SIGTERM"
        self.reader.join()
        return status

    def connect(self):
        host, port = self.address.split(":")
        return socket.create_connection((host, int(port)), timeout=60)

    def ask(self, path, body=None, headers=None):
        """Status, headers and JSON (or text) of an answer."""
        request = urllib.request.Request(f"http://{self.address}{path}", data=body, headers=headers or {},
                                         method="GET" if body is None else "POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, got, text = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            status, got, text = error.code, error.headers, error.read()
        return status, got, json.loads(text) if got["Content-Type"] == "application/json" else text.decode()

    def metrics(self):
        """Values by name and labels."""
        lines = [line for line in self.ask("/metrics")[2].splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def memory(self):
        """Resident bytes, and open files."""
        with open(f"/proc/{self.process.pid}/smaps_rollup") as text:
            rss = int(re.search(r"Rss: +(\d+)", text.read())[1]) * 1024
        return rss, len(os.listdir(f"/proc/{self.process.pid}/fd"))


def read_answer(connection):
    """Status and body of one answer of a raw connection; no status where it ends before that is whole."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        more = connection.recv(1)  # and no byte of the next answer
        if not more:
            return None, head
        head += more
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
    body = b""
    while len(body) < length:
        more = connection.recv(length - len(body))
        if not more:
            return None, body
        body += more
    return int(head.split()[1]), body


def post(path, body, headers="", length=None):
    """The bytes of a request, whose length may lie."""
    length = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{headers}\r\n".encode() + body
