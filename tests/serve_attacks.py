"""What clients do to serve that they should not: each is answered with an error or a closed connection, others get their
answers meanwhile, and nothing is left behind.
"""
import gzip
import json
import os
import socket
import struct
import threading
import time

from serve_process import Server, post, read_answer

ECHO = "/v2/models/echo/infer"


def number(value=1.0):
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [value]}]}).encode()


def tensor(count):
    """A binary request of so many floats, and the header field that it takes."""
    head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [count], "parameters": {"binary_data_size": 4 * count}}]}).encode()
    return head + bytes(4 * count), f"Inference-Header-Content-Length: {len(head)}\r\n"


def still_answers(server):
    status, _, answer = server.ask(ECHO, number(0.5))
    assert status == 200 and answer["outputs"][0]["data"] == [0.5], answer


def is_left_alone(server, what="torch_offload_http_connections", wanted=1):
    """Waits until only the connection that asks is there: a test that waits too long has failed."""
    end = time.monotonic() + 60
    while server.metrics()[what] != wanted:
        assert time.monotonic() < end, f"{what} is {server.metrics()[what]}"
        time.sleep(0.05)


def raw(server, data, answers=1):
    """Statuses of as many answers, and whether the connection is closed afterwards."""
    with server.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        statuses = []
        for _ in range(answers):
            status, body = read_answer(connection)
            statuses.append(status)
            if status is not None and status != 200:
                assert json.loads(body)["error"], body
        assert connection.recv(1) == b"", "the connection is still open"
        return statuses


def lies_about_lengths(serve, brief):
    with Server(serve, "--model", "echo=echo.pt", "--patience", "2", "--body", "1MiB") as server:
        body, field = tensor(100)
        wrong = {
            "Content-Length: -5": 400, "Content-Length: 5x": 400, "Content-Length:": 411, "Content-Length: 1\r\n"
            "Content-Length: 2": 400, "Transfer-Encoding: chunked": 411, "X: y": 411,
            "Content-Length: 1048577": 413, "Content-Length: 99999999999999999999999": 400,
            "Content-Length: 18446744073709551615": 413,
            "Content-Length: 5\r\nTransfer-Encoding: chunked": 411,
            f"Content-Length: {len(body)}\r\nContent-Type: multipart/form-data; boundary=x": 415,
        }
        for fields, status in wrong.items():
            head = f"POST {ECHO} HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n".encode()
            assert raw(server, head + body) == [status], fields
        assert raw(server, post(ECHO, body, field, len(body) + 1)) == [400], "longer than what comes"
        assert raw(server, post(ECHO, number(), "", len(number()) - 1), 2) == [400, 400], "shorter than what comes"
        assert raw(server, post(ECHO, body, "Inference-Header-Content-Length: 999999\r\n")) == [400]
        assert raw(server, post(ECHO, body, "Inference-Header-Content-Length: 0\r\n")) == [400]
        assert raw(server, post(ECHO, b"not gzip", "Content-Encoding: gzip\r\n")) == [400]
        assert raw(server, post(ECHO, gzip.compress(number())[:-20], "Content-Encoding: gzip\r\n"))[0] == 400
        assert raw(server, post(ECHO, gzip.compress(bytes(100 << 20)), "Content-Encoding: gzip\r\n"))[0] == 413
        assert raw(server, b"GET /v2 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc") == [400]
        assert raw(server, b"PUT /v2 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")[0] == 405
        assert raw(server, b"GET /v2 HTTP/1.1\r\nRange: bytes=1-2,0-,0-\r\n\r\n") == [200]
        still_answers(server)
        is_left_alone(server, "torch_offload_http_body_bytes", 0)


def sends_what_is_no_http(serve, brief):
    with Server(serve, "--model", "echo=echo.pt", "--patience", "2") as server:
        for data in (b"\r\n\r\n", b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"EAT /v2 HTTP/1.1\r\n\r\n",
                     b"GET /" + b"x" * 20000 + b" HTTP/1.1\r\n\r\n", os.urandom(5000) + b"\r\n\r\n",
                     b"GET /v2 HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n"):
            status = raw(server, data)[0]
            assert status is None or status >= 400, data[:20]
        for data in (b"x" * 200000, b"GET /v2 HTTP/1.1\r\nX: " + b"x" * 200000,
                     b"GET /v2 HTTP/1.1\r\n" + b"X: y\r\n" * 50000):  # heads without end
            with server.connect() as connection:
                try:
                    connection.sendall(data)
                    assert read_answer(connection)[0] in (None, 400, 414)
                except ConnectionError:
                    pass
        deep = b"[" * 100000
        for body in (deep, b'{"inputs":[{"data":' + deep, b"{" * 100000, b'{"a":' * 100000, b"\xff" * 1000, b"1e99999",
                     b'{"inputs":[' + b"{}," * 100000 + b"{}]}"):
            status, _, answer = server.ask(ECHO, body)
            assert status == 400 and answer["error"], body[:20]
        with server.connect() as connection:  # several requests at once
            connection.sendall(3 * post(ECHO, number(2.0)))
            assert [read_answer(connection)[0] for _ in range(3)] == [200] * 3
        with server.connect() as connection:
            connection.sendall(post(ECHO, b"", "Expect: 100-continue\r\n", len(number())))
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            connection.sendall(number())
            assert read_answer(connection)[0] == 200
        still_answers(server)


def vanishes(serve, brief):
    with Server(serve, "--model", "echo=echo.pt", "--model", "lm=lm.pt", "--vram", "40MiB") as server:
        body, field = tensor(1 << 16)
        whole = post(ECHO, body, field)
        still_answers(server)
        is_left_alone(server)
        _, files = server.memory()
        for i in range(20 if brief else 100):
            for data in (b"", b"POST ", whole[:100], whole[:5000], whole[:-1], whole, 2 * whole):
                connection = server.connect()
                if i % 2:  # a reset instead of an end
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(data)
                connection.close()
            if i % 10 == 0:
                still_answers(server)
        is_left_alone(server)
        is_left_alone(server, "torch_offload_http_body_bytes", 0)
        is_left_alone(server, "torch_offload_calls_at_work", 0)
        assert server.memory()[1] <= files + 2, "files are left open"


def is_slow(serve, brief):
    with Server(serve, "--model", "echo=echo.pt", "--model", "large=large.pt", "--patience", "1",
                "--slowest", "64MiB") as server:
        body, field = tensor(1000)
        for data in (b"GET /v2", b"POST " + ECHO.encode() + b" HTTP/1.1\r\nHost: ", post(ECHO, body[:-1], field, len(body))):
            with server.connect() as connection:
                connection.sendall(data)
                assert read_answer(connection)[0] in (None, 400), "it was answered as if it had been whole"
                assert connection.recv(1) == b""
        connections = [want_much(server) for _ in range(8)]
        still_answers(server)
        is_left_alone(server)  # though none of them has read anything
        for connection in connections:
            connection.close()
        connection = want_much(server)
        total = 0
        try:
            while more := connection.recv(1 << 14):
                total += len(more)
                time.sleep(0.01)
        except ConnectionError:
            pass
        assert total < 24 << 20, "it waited for a client that takes 1.6 MB a second at most"
        connection.close()
        is_left_alone(server)


def want_much(server):
    """A connection that is sent 24 MiB, and has room for little."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = server.address.split(":")
    connection.connect((host, int(port)))
    connection.sendall(post("/v2/models/large/infer", json.dumps({
        "parameters": {"binary_data_output": True},
        "inputs": [{"name": "mib", "datatype": "INT64", "shape": [], "data": [24]}]}).encode()))
    return connection


def is_too_many(serve, brief):
    with Server(serve, "--model", "large=large.pt", "--model", "echo=echo.pt", "--calls", "1", "--queue", "1",
                "--connections", "12") as server:
        statuses = []

        def work():
            for _ in range(20):
                status, headers, answer = server.ask("/v2/models/large/infer", json.dumps({"inputs": [
                    {"name": "mib", "datatype": "INT64", "shape": [1], "data": [0]}]}).encode())
                statuses.append(status)
                assert status == 200 or (headers["Retry-After"] == "1" and "--queue" in answer["error"]), answer

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) <= {200, 503} and len(statuses) == 160 and 200 in statuses, statuses
        idle = [server.connect() for _ in range(12)]
        for connection in idle:  # each is known to be served
            connection.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")
            assert read_answer(connection)[0] == 200
        with server.connect() as connection:
            status, body = read_answer(connection)
            assert status == 503 and b"--connections" in body, status
        for connection in idle:
            connection.close()
        end = time.monotonic() + 60
        while True:
            try:
                still_answers(server)
                break
            except (AssertionError, ConnectionError):
                assert time.monotonic() < end
        assert server.metrics()["torch_offload_http_connections_refused_total"] >= 1
    with Server(serve, "--model", "echo=echo.pt", "--body", "1MiB", "--bodies", "1MiB") as server:
        with server.connect() as connection:
            connection.sendall(post(ECHO, b"", "", 1 << 20))
            is_left_alone(server, "torch_offload_http_body_bytes", 1 << 20)
            status, headers, answer = server.ask(ECHO, number())
            assert status == 503 and headers["Retry-After"] == "1" and "--bodies" in answer["error"], answer
        is_left_alone(server, "torch_offload_http_body_bytes", 0)
        many = json.dumps({"inputs": [{"name": "x", "datatype": "INT8", "shape": [200000], "data": [1] * 200000}]})
        status, _, answer = server.ask(ECHO, many.encode())
        assert status == 413 and "--bodies" in answer["error"], answer
        is_left_alone(server, "torch_offload_http_body_bytes", 0)
        still_answers(server)


def ends_in_order(serve, brief):
    for _ in range(2 if brief else 5):
        with Server(serve, "--model", "lm=lm.pt", "--vram", "40MiB") as server:
            answers = []
            body = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [
                {"name": "tokens", "datatype": "INT64", "shape": [1, 8], "data": list(range(8))}]}).encode()
            started = threading.Barrier(9)

            def work():
                with server.connect() as connection:
                    connection.sendall(post("/v2/models/lm/infer", body))
                    answers.append(read_answer(connection))  # the first of each: it is in flight when the server ends
                    started.wait()
                    try:
                        while True:
                            connection.sendall(post("/v2/models/lm/infer", body))
                            answer = read_answer(connection)
                            if answer[0] is None:
                                assert answer[1] == b"", "an answer was cut"
                                return
                            answers.append(answer)
                    except ConnectionError:
                        return  # what came too late

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            started.wait()
            idle = server.connect()
            idle.sendall(b"GET /v2 HTTP/1.1\r\n\r\n")  # it is served, and not only in the queue of the port
            assert read_answer(idle)[0] == 200
            server.tell()
            for thread in threads:
                thread.join()
            assert idle.recv(1) == b""
            idle.close()
            assert len(answers) >= 8 and {status for status, _ in answers} == {200}, answers
            assert len({text for _, text in answers}) == 1, "answers differ"


def does_not_grow(serve, brief):
    with Server(serve, "--model", "echo=echo.pt", "--model", "layers=layers.pt", "--vram", "3MiB") as server:
        body, field = tensor(1 << 14)
        layers = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 256], "data": [0.25] * 256}]}).encode()
        requests = [post(ECHO, body, field), post(ECHO, body, ""), post("/v2/models/layers/infer", layers),
                    post("/v2/models/nothing/infer", layers), post(ECHO, number("x"))]

        def work(count):
            with server.connect() as connection:
                for i in range(count):
                    connection.sendall(requests[i % len(requests)])
                    assert read_answer(connection)[0] in (200, 400, 404)

        def all_work(count):
            threads = [threading.Thread(target=work, args=(count,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        all_work(50 if brief else 200)
        before, _ = server.memory()
        for _ in range(1 if brief else 3):
            all_work(100 if brief else 400)
        after, _ = server.memory()
        grown = after - before
        print(f"  grown by {grown / 2**20:.1f} MiB", flush=True)
        assert grown < (64 if brief else 24) << 20, f"grown by {grown >> 20} MiB"


ATTACKS = [lies_about_lengths, sends_what_is_no_http, vanishes, is_slow, is_too_many, ends_in_order, does_not_grow]
