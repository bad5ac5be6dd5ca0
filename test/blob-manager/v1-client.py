"""A version-1 client of the blob manager, written from the wire format alone.

Reads commands from standard input, a JSON object a line, and answers each with one:
  {"do": "connect", "path": …} {"do": "send", "hex": …} {"do": "noop", "tag": …}
  {"do": "get", "tag": …, "generation": …, "id": …} {"do": "fetch", "tag": …, "token": …, "start": …, "count": …}
  {"do": "read", "offset": …, "length": …} {"do": "map", "path": …} {"do": "receive"} {"do": "close"}
"""

import array
import fcntl
import json
import os
import socket
import struct
import sys

REPLY, NEED_REPLY, VERSION = 4, 8, 1
connection = None
descriptors = []


def header(tag, request, size):
    return struct.pack("<QIII", tag, request, VERSION | NEED_REPLY, size)


def exactly(count):
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def receive():
    head, fds, flags, _ = socket.recv_fds(connection, 20, 4)
    if not head:
        return {"end": True}
    if len(head) < 20:
        head += exactly(20 - len(head))
    tag, request, bits, size = struct.unpack("<QIII", head)
    body = exactly(size)
    descriptors.extend(fds)
    answer = {"tag": tag, "request": request, "flags": bits, "size": size, "descriptors": len(fds), "flags_out": int(flags), "body": body.hex()}
    if request == 1:
        answer["token"], answer["base"], answer["result"] = struct.unpack_from("<QQI", body)
    elif request == 2:
        answer["token"], answer["count"], answer["result"] = struct.unpack_from("<QQI", body)
    return answer


def do(command):
    global connection
    what = command["do"]
    if what == "connect":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(30)
        connection.connect(command["path"])
        return {}
    if what == "send":
        connection.sendall(bytes.fromhex(command["hex"]))
        return {}
    if what == "noop":
        connection.sendall(header(command["tag"], 0, 0))
        return receive()
    if what == "get":
        body = struct.pack("<I256s", command["generation"], command["id"].encode())
        connection.sendall(header(command["tag"], 1, len(body)) + body)
        return receive()
    if what == "fetch":
        body = struct.pack("<QQQ", command["token"], command["start"], command["count"])
        connection.sendall(header(command["tag"], 2, len(body)) + body)
        return receive() if command.get("wait", True) else {}
    if what == "read":
        return {"hex": os.pread(descriptors[-1], command["length"], command["offset"]).hex()}
    if what == "mode":
        return {"access": fcntl.fcntl(descriptors[-1], fcntl.F_GETFL) & os.O_ACCMODE}
    if what == "map":
        with open(command["path"], "rb") as file:
            data = file.read()
        magic, version, magic2, ready = struct.unpack("<IIII", data[:16])
        return {"magic": magic, "version": version, "magic2": magic2, "ready": ready, "bits": data[4096:].hex(), "bytes": len(data)}
    if what == "receive":
        return receive()
    if what == "close":
        connection.close()
        return {}
    raise ValueError(what)


for line in sys.stdin:
    try:
        result = do(json.loads(line))
    except (EOFError, OSError) as error:
        result = {"error": type(error).__name__}
    print(json.dumps(result), flush=True)
