"""What granian and Bottle take by themselves: the body is read, and 200 is said."""

from bottle import Bottle, request

application = Bottle()


@application.post("/webhook")
def answer() -> bytes:
    request.environ["wsgi.input"].read(int(request.environ["CONTENT_LENGTH"]))
    return b"{}"
