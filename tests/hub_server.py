# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""A server that speaks what downloads use of the Hugging Face Hub."""
import hashlib
import json
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = 'a' * 40


class HubServer:
    """Serves repositories, ``{'OWNER/REPO': {file: content}}``, with faults.

    ``cuts`` downloads end in the middle, ``refusals`` requests get a 429,
    ``wrong`` has other contents than the Hub says, and ``answers`` has other
    answers, ``{'OWNER/REPO': (status, body, headers)}``. A download of a file
    in ``stalls`` sets ``stalled`` in the middle and waits for ``go_on``.
    """

    def __init__(self, repos):
        self.repos, self.wrong, self.requests = repos, {}, []
        self.cuts = self.refusals = 0
        self.answers, self.stalls = {}, set()
        self.stalled, self.go_on = threading.Event(), threading.Event()
        handler = type('Handler', (_Handler, ), dict(hub=self))
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}'
        threading.Thread(target=self.server.serve_forever,
                         daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def send(self, status, with_body, body=b'', **headers):
        self.send_response(status)
        headers.setdefault('Content_Length', str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if with_body:
            with suppress(ConnectionError):  # the client may leave
                self.wfile.write(body)

    def answer(self, with_body):
        hub = self.hub
        hub.requests.append((self.command, self.path))
        if hub.refusals:
            hub.refusals -= 1
            return self.send(429, with_body, Retry_After='1')
        api = re.match(r'/api/(?:models|datasets)/([^/]+/[^/?]+)', self.path)
        file = re.match(r'/(?:datasets/)?([^/]+/[^/]+)/resolve/[^/]+/([^?]+)',
                        self.path)
        if not api and not file:
            return self.send(404, with_body)  # the client's own questions
        repo = (api or file)[1]
        if repo in hub.answers:
            status, body, headers = hub.answers[repo]
            return self.send(status, with_body, body, **headers)
        if repo not in hub.repos:
            return self.send(404, with_body, X_Error_Code='RepoNotFound')
        files = hub.repos[repo]
        if api:
            siblings = [
                dict(rfilename=name, size=len(content), blobId='0' * 40,
                     lfs=dict(sha256=hashlib.sha256(content).hexdigest(),
                              size=len(content), pointerSize=134))
                for name, content in files.items()]
            return self.send(200, with_body, json.dumps(dict(
                id=repo, sha=COMMIT, siblings=siblings)).encode())
        name = file[2]
        if name not in files:
            return self.send(404, with_body, X_Error_Code='EntryNotFound',
                             X_Repo_Commit=COMMIT)
        digest = hashlib.sha256(files[name]).hexdigest()
        headers = dict(ETag=f'"{digest}"', X_Repo_Commit=COMMIT,
                       Accept_Ranges='bytes')
        content = hub.wrong.get(name, files[name])
        status, begin = 200, re.match(r'bytes=(\d+)-',
                                      self.headers.get('Range') or '')
        if begin:
            begin = int(begin[1])
            headers['Content_Range'] = (
                f'bytes {begin}-{len(content) - 1}/{len(content)}')
            status, content = 206, content[begin:]
        if hub.cuts and with_body:
            hub.cuts -= 1
            self.send(status, True, content[:len(content) // 2],
                      Content_Length=str(len(content)), **headers)
            self.wfile.flush()
            return self.connection.shutdown(2)
        if name in hub.stalls and with_body:
            hub.stalls.remove(name)
            half = len(content) // 2
            self.send(status, True, content[:half],
                      Content_Length=str(len(content)), **headers)
            self.wfile.flush()
            hub.stalled.set()
            hub.go_on.wait()
            with suppress(ConnectionError):
                self.wfile.write(content[half:])
            return None
        return self.send(status, with_body, content, **headers)
