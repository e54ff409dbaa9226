"""A web server for tests, whose answers may be late, wrong or endless."""

from __future__ import annotations

import http.server
import threading


class WebServer:
    """Serves answers by path on loopback, and counts the requests."""

    def __init__(self):
        self.answers, self.asked = {}, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                outer.answers.get(self.path, lambda handler: handler.send_error(404))(self)

            def log_message(self, *arguments):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request, address):
                pass  # clients go away from what is too large

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, path, content=b"picture", status=200, **headers):
        def answer(handler):
            handler.send_response(status)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content)

        self.answers[path] = answer

    def add_endless(self, path):
        def answer(handler):
            handler.send_response(200)
            handler.end_headers()
            while True:
                handler.wfile.write(b"x" * 1000)

        self.answers[path] = answer

    def add_waiting(self, path, may_answer, content):
        def answer(handler):
            may_answer.wait(60)
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(content)

        self.answers[path] = answer

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
