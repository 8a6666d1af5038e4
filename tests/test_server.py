"""The client of an embeddings server against a real one on this machine, with faults injected."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from lorec.errors import ConfigError, DataError, ServerError
from lorec.runfile import plain, resolve
from lorec.text import Hash, Server
from lorec.text.store import Store

KEY = "sk-very-secret"


class Fake:
    """An embeddings server that does what `faults` say, one for each request, and then works."""

    def __init__(self) -> None:
        self.faults: list = []
        self.asked: list[list[str]] = []
        self.keys: list[str | None] = []
        self.dim, self.most, self.delay = 8, 10_000, 0.0
        self.at_once = self.peak = 0
        lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    fake.asked.append(body["input"])
                    fake.keys.append(self.headers.get("Authorization"))
                    fault = fake.faults.pop(0) if fake.faults else None
                    fake.at_once += 1
                    fake.peak = max(fake.peak, fake.at_once)
                time.sleep(fake.delay * (len(fake.asked) % 3))  # answers overtake each other
                with lock:
                    fake.at_once -= 1
                if self.path != "/v1/embeddings":
                    return self.answer(404, {"error": "no such path"})
                if fault is None and len(body["input"]) > fake.most:
                    return self.answer(413, {"error": "too many"})
                if callable(fault):
                    return fault(self, body)
                if fault is not None:
                    return self.answer(*fault) if isinstance(fault, tuple) else self.answer(fault, {"error": KEY})
                return self.answer(200, fake.embedded(body["input"]))

            def answer(self, code, value, **headers):
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(code)
                for name, text in headers.items():
                    self.send_header(name.replace("_", "-"), text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    def embedded(self, texts):
        vectors = wanted(texts, self.dim).tolist()
        rows = [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        return {"data": rows[::-1], "model": "tiny"}  # nobody promises an order


def wanted(texts, dim=8):
    return np.concatenate([*Hash(dim=dim).encode(texts)])


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    made = Fake()
    yield made
    made.stop()


def server(fake, **fields):
    return Server(
        url=fake.url, model="tiny", **{"batch": 4, "wait": 0.01, "timeout": 5.0, "key_variable": "MY_KEY"} | fields
    )


TEXTS = [f"text {n}" for n in range(30)]


def test_gives_vectors_in_order_though_answers_overtake_each_other(fake):
    fake.delay = 0.02
    found = np.concatenate([*server(fake).encode(TEXTS)])
    np.testing.assert_allclose(found, wanted(TEXTS), atol=1e-6)
    assert 1 < fake.peak <= 4
    assert sorted(text for one in fake.asked for text in one) == sorted(TEXTS)
    assert set(fake.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize("fault", [429, 500, 503])
def test_asks_again_where_that_may_help(fake, fault):
    fake.faults = [fault, fault]
    found = np.concatenate([*server(fake, concurrency=1).encode(TEXTS)])
    np.testing.assert_allclose(found, wanted(TEXTS), atol=1e-6)
    assert len(fake.asked) == 2 + 8


def test_waits_as_long_as_the_server_asks(fake):
    fake.faults = [lambda handler, body: handler.answer(429, {}, Retry_After="1")]
    started = time.monotonic()
    next(server(fake).encode(["a"]))
    assert time.monotonic() - started >= 1.0


def test_a_smaller_batch_where_it_is_too_much(fake):
    fake.most = 1
    found = np.concatenate([*server(fake).encode(TEXTS)])
    np.testing.assert_allclose(found, wanted(TEXTS), atol=1e-6)


def test_a_server_that_hangs_up_or_is_slow_is_asked_again(fake):
    def hang_up(handler, body):
        handler.close_connection = True
        handler.connection.close()

    def sleep(handler, body):
        time.sleep(1.5)
        handler.close_connection = True

    fake.faults = [hang_up, sleep]
    found = np.concatenate([*server(fake, timeout=1.0, concurrency=1).encode(TEXTS[:6])])
    np.testing.assert_allclose(found, wanted(TEXTS[:6]), atol=1e-6)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (401, "refuses .401.; put its key into the variable MY_KEY"),
        (404, "answers 404.*is 'tiny' what it serves"),
        ((200, b"<html>hello</html>"), "something else than embeddings"),
        ((200, {"data": [{"index": 0}]}), "something else than embeddings"),
        ((200, {"data": [{"index": 0, "embedding": []}]}), "vectors of the shape"),
        ((200, {"data": []}), "vectors of the shape"),
        ((200, {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]}), "something else"),
    ],
)
def test_says_in_one_line_what_is_wrong_and_never_the_key(fake, fault, said):
    fake.faults = [fault]
    with pytest.raises(ServerError, match=said) as caught:
        list(server(fake).encode(["a"]))
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gives_up_on_a_server_that_stays_down(fake):
    fake.faults = [500] * 3
    with pytest.raises(ServerError, match=r"answers 500: .*; asked 3 times"):
        list(server(fake, retries=2).encode(["a"]))
    with pytest.raises(ServerError, match="can't be reached"):
        list(Server(url="http://127.0.0.1:9/v1", model="x", retries=1, wait=0.01).encode(["a"]))


def test_vectors_of_another_length_are_refused_and_not_kept(fake, tmp_path):
    """At once, and when another model answers later: what is there stays as it is."""
    fake.faults = [None, (200, {"data": [{"index": n, "embedding": [1.0, 2.0]} for n in range(4)]})]
    with pytest.raises(DataError, match="length 2, those before have 8"):
        Store(tmp_path, server(fake, concurrency=1)).vectors(TEXTS)
    fake.dim = 2
    with pytest.raises(DataError, match="length 2, those before have 8"):
        Store(tmp_path, server(fake)).vectors(TEXTS)
    fake.dim = 8
    np.testing.assert_allclose(Store(tmp_path, server(fake)).vectors(TEXTS), wanted(TEXTS), atol=1e-6)


def test_one_text_too_long_is_cut_until_the_server_takes_it(fake):
    def too_long(handler, body):
        long = max(map(len, body["input"])) > 300
        handler.answer(413, {}) if long else handler.answer(200, fake.embedded(body["input"]))

    fake.faults = [too_long] * 20
    list(server(fake, concurrency=1).encode(["short", "y" * 1000]))
    assert fake.asked[-1] == ["y" * 250]


def test_a_server_that_drips_is_slow(fake):
    def drip(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(30):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    fake.faults = [drip]
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"did not answer within 0\.5 s"):
        list(Server(url=fake.url, model="tiny", timeout=0.5, retries=0).encode(["a"]))
    assert time.monotonic() - started < 2.5


def test_a_question_cut_for_a_server_keeps_its_end(fake):
    asked = 'These are the items: "' + "x" * 5000 + '". How likely is it that this account is a fraudster?'

    def too_long(handler, body):
        handler.answer(413, {"error": "too long"})

    fake.faults = [too_long] * 3
    list(Server(url=fake.url, model="tiny", max_tokens=512).encode([asked]))
    sent = [one[0] for one in fake.asked]
    assert len(sent) == 4
    assert [len(one) for one in sent] == sorted(map(len, sent), reverse=True)
    assert all(one.startswith("These are the items") and one.endswith("is a fraudster?") for one in sent)


def test_titles_go_whole_where_a_question_is_too_much_for_a_server(fake):
    asked = 'These are the items: "' + '"; "'.join(f"thing {n} of iron" for n in range(60)) + '". Is it a fraudster?'
    fake.faults = [lambda handler, body: handler.answer(413, {"error": "too long"})]
    list(Server(url=fake.url, model="tiny", max_tokens=512).encode([asked]))
    between = fake.asked[-1][0].split('"')
    assert (between[0], between[-1]) == ("These are the items: ", ". Is it a fraudster?")
    assert between[1::2] == [f"thing {n} of iron" for n in range(60 - len(between[1::2]), 60)]
    assert 20 < len(between[1::2]) < 30


def test_an_index_that_stands_twice_is_refused(fake):
    twice = {"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}]}
    fake.faults = [lambda handler, body: handler.answer(200, twice)]
    with pytest.raises(ServerError, match="something else than embeddings"):
        list(Server(url=fake.url, model="tiny").encode(["a", "b"]))


def test_stops_at_once_when_nobody_listens_any_more(fake):
    def busy_but_for_the_first(handler, body):
        first = TEXTS[0] in body["input"]
        handler.answer(200, fake.embedded(body["input"])) if first else handler.answer(500, {})

    fake.faults = [busy_but_for_the_first] * 100
    parts = server(fake, wait=60.0, concurrency=2).encode(TEXTS)
    next(parts)
    started = time.monotonic()
    parts.close()
    assert time.monotonic() - started < 5


def test_no_proxy_of_the_environment_is_asked_and_no_key_sent_unasked(fake, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    list(server(fake, key_variable="").encode(["a"]))
    assert fake.keys == [None]


@pytest.mark.parametrize("key", ["sk-sécret", "sk-a\nb"])
def test_a_key_that_is_none_is_not_repeated(fake, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ConfigError, match="MY_KEY holds no key") as caught:
        list(server(fake).encode(["a"]))
    assert key[3:5] not in str(caught.value).replace("MY_KEY", "")
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")  # as a file of secrets ends
    list(server(fake).encode(["a"]))
    assert fake.keys == [f"Bearer {KEY}"]


def test_nothing_is_lost_and_nothing_encoded_twice_when_it_fails_halfway(fake, tmp_path):
    fake.faults = [None, None, None, 404]
    with pytest.raises(ServerError):
        Store(tmp_path, server(fake, concurrency=1)).vectors(TEXTS)
    first = {text for one in fake.asked[:3] for text in one}
    fake.asked.clear()
    fake.faults.clear()
    found = Store(tmp_path, server(fake, concurrency=1)).vectors(TEXTS)
    assert not first & {text for one in fake.asked for text in one}
    np.testing.assert_allclose(found, wanted(TEXTS), atol=1e-6)


def test_what_is_no_number_is_refused_and_not_kept(fake, tmp_path):
    fake.faults = [(200, b'{"data": [{"index": 0, "embedding": [NaN, 1.0]}]}')]
    with pytest.raises(DataError, match="no numbers for the text 'a'"):
        Store(tmp_path, server(fake)).vectors(["a"])
    assert Store(tmp_path, server(fake)).missing(["a"]) == ["a"]


def test_an_empty_title_and_one_too_long_are_sent_as_the_server_can_take_them(fake):
    list(server(fake, max_tokens=8).encode(["", "word " * 1000]))
    assert fake.asked[0][0] == "(no text)"
    assert len(fake.asked[0][1]) <= 48


def test_the_key_is_in_no_record(fake, tmp_path):
    spec = server(fake)
    Store(tmp_path, spec).vectors(["a"])
    config = resolve({"encoder": {"name": "server", "url": fake.url, "model": "tiny"}})
    assert KEY not in json.dumps([plain(config), spec.identity(), repr(spec)])
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"url": "localhost:8000"}, "begins with http"),
        ({"url": "me:secret@host/v1"}, "begins with http"),
        ({"url": "http://[::1/v1"}, "begins with http"),
        ({"url": "http://host:port/v1"}, "begins with http"),
        ({"key_variable": "sk-secret"}, "no variable"),
        ({"url": "http://me:secret@host/v1"}, "password"),
        ({"url": "https://host/v1?key=secret"}, "query"),
        ({"batch": 0}, "batch"),
        ({"timeout": 0.0}, "timeout"),
    ],
)
def test_refuses(fields, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Server(**{"url": "http://host/v1", "model": "m"} | fields)
    assert "secret" not in str(caught.value)
