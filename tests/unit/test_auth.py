"""Who may post: each way alone, all and any of them together, and what those try who may not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.auth import Gate, Verdict, Visitor, credentials, is_one_of, vendor_signature
from bridge.config import Auth

BODY = b'{"statuses": [ ] , "\xc3\xa9": "\\u00e9"}'
NOW = 1_767_225_600.25

WELCOME, HIDDEN, UNKNOWN, FORBIDDEN = Verdict.WELCOME, Verdict.HIDDEN, Verdict.UNKNOWN, Verdict.FORBIDDEN
BROWSER = Verdict.BROWSER


def visitor(token: str = "", address: str = "203.0.113.7", **headers: str) -> Visitor:
    """A request; `x_webhook_token="…"` is the header X-Webhook-Token."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return Visitor(token, lambda name: sent.get(name.lower()), address)


def verdict(auth: Auth, who: Visitor, body: bytes = BODY) -> Verdict:
    """What the receiver makes of the gate's two questions."""
    gate = Gate(auth)
    early = gate.before_body(who)
    return gate.with_body(who, body) if early is None else early


def basic(text: str | bytes) -> str:
    return "Basic " + base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def meta(secret: str, body: bytes = BODY) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def vendor(secret: str = "key:secret", body: bytes = BODY, **other: str) -> dict[str, str]:
    key, _, access_secret = secret.partition(":")
    sent = {"accesskey": key, "action": "callback", "biztype": "2", "ts": "1767225600000", "algorithm": "sha256"}
    sent |= other
    head = f"accessKey={key}&action={sent['action']}&bizType={sent['biztype']}&ts={sent['ts']}".encode()
    text = head + (b"&body=" + body if body else b"") + f"&accessSecret={access_secret}".encode()
    return {"sign": hashlib.sha256(text).hexdigest()} | sent


class TestNothingSet:
    def test_without_settings_everyone_may_post(self) -> None:
        """The first try on one's own machine needs no set-up; beyond loopback the settings refuse this."""
        assert verdict(Auth(), visitor()) is WELCOME

    @pytest.mark.parametrize("header", ["origin", "sec_fetch_site"])
    @pytest.mark.parametrize("value", ["http://evil.example:8080", "null", "same-origin", ""])
    def test_a_web_page_may_not_post(self, header: str, value: str) -> None:
        """A site whose name was made to lead to 127.0.0.1 could post a click from any browser of the house."""
        assert verdict(Auth(), visitor(**{header: value})) is BROWSER

    def test_a_path_that_goes_on_is_not_the_webhook(self) -> None:
        """Any path would be the webhook's, and the answer tell a stranger that it is there."""
        assert verdict(Auth(), visitor("something")) is HIDDEN

    def test_no_body_is_read_for_a_signature_that_nobody_asked_for(self) -> None:
        """A stranger could make the receiver read what it will not look at."""
        assert Gate(Auth()).wants_body is False
        assert Gate(Auth(meta_app_secret=("s",))).wants_body is True
        assert Gate(Auth(vendor_secret=("k:s",))).wants_body is True


class TestPathToken:
    AUTH = Auth(path_token=("first-token", "second-token"))

    @pytest.mark.parametrize("token", ["first-token", "second-token"])
    def test_each_token_opens(self, token: str) -> None:
        """While a secret is changed, callbacks with the old one and the new one must both come in."""
        assert verdict(self.AUTH, visitor(token)) is WELCOME

    @pytest.mark.parametrize("token", ["", "first-toke", "first-tokens", "FIRST-TOKEN", "first-token ", "é", "\x00"])
    def test_all_else_is_hidden(self, token: str) -> None:
        """Told apart from a path that does not exist, a guesser would know where to go on."""
        assert verdict(self.AUTH, visitor(token)) is HIDDEN
        assert not Gate(self.AUTH).finds_path(visitor(token))


class TestHeader:
    AUTH = Auth(header_token=("first", "second"))

    @pytest.mark.parametrize("token", ["first", "second"])
    def test_each_token_opens(self, token: str) -> None:
        """While a secret is changed, callbacks with the old one and the new one must both come in."""
        assert verdict(self.AUTH, visitor(x_webhook_token=token)) is WELCOME

    @pytest.mark.parametrize("token", ["", "firs", "firstt", "First", "first ", "first,second", "é", "\xff\xfe", "😀"])
    def test_all_else_is_turned_away(self, token: str) -> None:
        """A gate that opens to almost the right word opens to all."""
        assert verdict(self.AUTH, visitor(x_webhook_token=token)) is UNKNOWN

    def test_without_the_header_it_is_turned_away(self) -> None:
        """The sender that knows nothing is the one to keep out."""
        assert verdict(self.AUTH, visitor()) is UNKNOWN

    def test_the_name_of_the_header_is_a_setting(self) -> None:
        """Each vendor's console has its own name for it."""
        auth = Auth(header_token=("first",), header_name="Authorization")
        assert verdict(auth, visitor(authorization="first")) is WELCOME
        assert verdict(auth, visitor(x_webhook_token="first")) is UNKNOWN


class TestBasic:
    AUTH = Auth(basic=("user:password", "üser:pässwörd:with:colons"))

    @pytest.mark.parametrize(
        "header",
        [
            basic("user:password"),
            basic("üser:pässwörd:with:colons"),
            basic("user:password").replace("Basic", "bAsIc"),
            basic("user:password").replace(" ", "   ") + "  ",
        ],
    )
    def test_each_user_may_post(self, header: str) -> None:
        """HTTP writes the scheme in any case, passwords hold colons, and names other letters than ASCII's."""
        assert verdict(self.AUTH, visitor(authorization=header)) is WELCOME

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "Basic",
            "Basic ",
            "Basic user:password",
            "Basic !!!!",
            "Basic \xe9\xe9\xe9\xe9",
            "Bearer dXNlcjpwYXNzd29yZA==",
            "dXNlcjpwYXNzd29yZA==",
            "Basic dXNlcjpwYXNzd29yZA",  # without its padding
            "Basic dXNlcjpwYXNzd29yZA==junk",
            basic("user:"),
            basic("user"),
            basic(":password"),
            basic("user:passwor"),
            basic("user:password\n"),
            basic("USER:password"),
            basic("other:password"),
            basic("üser:pässwörd:with:colons".encode("latin-1")),
            basic(b"\xff\xfe\x00"),
        ],
    )
    def test_all_else_is_turned_away(self, header: str) -> None:
        """Also what is no Base64 or no text must be a refusal, and not a fault that asks the sender to come again."""
        assert verdict(self.AUTH, visitor(authorization=header)) is UNKNOWN

    def test_without_the_header_it_is_turned_away(self) -> None:
        """The sender that knows nothing is the one to keep out."""
        assert verdict(self.AUTH, visitor()) is UNKNOWN


class TestMeta:
    AUTH = Auth(meta_app_secret=("first", "sëcond"))

    def test_a_signature_that_was_computed_elsewhere_is_understood(self) -> None:
        """RFC 4231, test case 2: checked against our own function only, a shared mistake would not show."""
        signature = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        who = visitor(x_hub_signature_256=signature)
        assert verdict(Auth(meta_app_secret=("Jefe",)), who, b"what do ya want for nothing?") is WELCOME

    @pytest.mark.parametrize("secret", ["first", "sëcond"])
    def test_each_secret_signs(self, secret: str) -> None:
        """While a secret is changed, callbacks with the old one and the new one must both come in."""
        assert verdict(self.AUTH, visitor(x_hub_signature_256=meta(secret))) is WELCOME

    def test_hex_is_taken_in_any_case(self) -> None:
        """Hexadecimal says the same in capitals; a proxy that changes it must not cost callbacks."""
        assert verdict(self.AUTH, visitor(x_hub_signature_256=f" {meta('first').upper()} ")) is WELCOME

    def test_it_is_over_the_raw_body(self) -> None:
        """Read and written again, the body has other bytes: honest callbacks would be refused, all of them."""
        who = visitor(x_hub_signature_256=meta("first"))
        assert verdict(self.AUTH, who, BODY.replace(b" ", b"")) is UNKNOWN
        assert verdict(self.AUTH, who, BODY + b"\n") is UNKNOWN
        assert verdict(self.AUTH, who, b"") is UNKNOWN

    def test_an_empty_body_is_signed_as_well(self) -> None:
        """Nothing is a body too: left out of the check, anyone could send it."""
        assert verdict(self.AUTH, visitor(x_hub_signature_256=meta("first", b"")), b"") is WELCOME
        assert verdict(self.AUTH, visitor(), b"") is UNKNOWN

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "sha256=",
            meta("first").removeprefix("sha256="),
            meta("first").replace("sha256", "sha1"),
            meta("first")[:-1],
            meta("first") + "0",
            meta("third"),
            meta(""),
            "sha256=\xe9\xe9",
            "\u212a",
        ],
    )
    def test_all_else_is_turned_away(self, header: str) -> None:
        """Whoever can leave out a part of the signature can forge it."""
        assert verdict(self.AUTH, visitor(x_hub_signature_256=header)) is UNKNOWN

    def test_without_the_header_it_is_turned_away(self) -> None:
        """An unsigned callback is nobody's."""
        assert verdict(self.AUTH, visitor()) is UNKNOWN


class TestVendor:
    AUTH = Auth(vendor_secret=("key:secret", "other:with:colon"))
    # The text that is hashed, written out as the vendor's rules lay it down.
    TEXT = b'accessKey=key&action=callback&bizType=2&ts=1767225600000&body={"a": 1}&accessSecret=secret'
    BARE = b"accessKey=key&action=callback&bizType=2&ts=1767225600000&accessSecret=secret"

    def test_the_text_that_is_hashed_is_the_vendors(self) -> None:
        """One field in another place, and every callback of this vendor is refused."""
        parts: dict[str, Any] = {
            "access_key": "key",
            "access_secret": "secret",
            "action": "callback",
            "biztype": "2",
            "ts": "1767225600000",
        }
        body = b'{"a": 1}'
        for algorithm in ("sha256", "SHA256", "Sha256"):
            signed = vendor_signature(**parts, algorithm=algorithm, body=body)
            assert signed == hashlib.sha256(self.TEXT).hexdigest()
        for algorithm in ("md5", "", "sha-256", "sha1"):
            assert vendor_signature(**parts, algorithm=algorithm, body=body) == hashlib.md5(self.TEXT).hexdigest()
        assert vendor_signature(**parts, algorithm="sha256", body=b"") == hashlib.sha256(self.BARE).hexdigest()
        assert vendor_signature(**parts, algorithm="", body=b"") == hashlib.md5(self.BARE).hexdigest()

    @pytest.mark.parametrize("algorithm", ["sha256", "SHA256", "md5", "", None])
    @pytest.mark.parametrize("body", [b'{"a": 1}', b""])
    def test_what_the_vendor_sends_is_understood(self, algorithm: str | None, body: bytes) -> None:
        """SHA-256 where the vendor says so, MD5 where it says anything else or nothing."""
        text = self.TEXT if body else self.BARE
        method = hashlib.sha256 if (algorithm or "").lower() == "sha256" else hashlib.md5
        sent = {"accesskey": "key", "action": "callback", "biztype": "2", "ts": "1767225600000"}
        sent |= {"sign": method(text).hexdigest()} | ({} if algorithm is None else {"algorithm": algorithm})
        assert verdict(self.AUTH, visitor(**sent), body) is WELCOME
        assert verdict(self.AUTH, visitor(**sent), body + b" ") is UNKNOWN

    def test_each_key_signs_with_its_own_secret(self) -> None:
        """While a secret is changed both must come in; one's secret must not sign in the other's name."""
        assert verdict(self.AUTH, visitor(**vendor("other:with:colon"))) is WELCOME
        assert verdict(self.AUTH, visitor(**vendor("other:secret"))) is UNKNOWN
        assert verdict(self.AUTH, visitor(**vendor("nobody:secret"))) is UNKNOWN

    def test_two_secrets_of_one_key_both_sign(self) -> None:
        """The vendor keeps the access key when it gives out a new secret."""
        auth = Auth(vendor_secret=("key:old", "key:new"))
        assert verdict(auth, visitor(**vendor("key:old"))) is WELCOME
        assert verdict(auth, visitor(**vendor("key:new"))) is WELCOME

    def test_the_signature_is_taken_in_any_case(self) -> None:
        """The vendor's own example compares without regard to case."""
        sent = vendor()
        assert verdict(self.AUTH, visitor(**sent | {"sign": f" {sent['sign'].upper()} "})) is WELCOME

    def test_its_age_does_not_matter(self) -> None:
        """An honest resend, days later, bears the first try's time: refused, the callback is lost for good."""
        assert verdict(self.AUTH, visitor(**vendor(ts="1"))) is WELCOME

    @pytest.mark.parametrize("name", ["accesskey", "action", "biztype", "ts", "algorithm", "sign"])
    @pytest.mark.parametrize("value", [None, "", "x", "\xe9", "\udcff"])
    def test_each_header_is_part_of_it(self, name: str, value: str | None) -> None:
        """What is not signed can be changed on the way; and text that is none must be a refusal, not a fault."""
        sent: dict[str, str] = vendor()
        del sent[name]
        if value is not None:
            sent[name] = value
        assert verdict(self.AUTH, visitor(**sent)) is UNKNOWN

    def test_no_signature_matches_no_key(self) -> None:
        """An unknown key has no signature; an empty one must not be equal to that."""
        assert verdict(self.AUTH, visitor()) is UNKNOWN
        assert verdict(self.AUTH, visitor(accesskey="nobody", sign="")) is UNKNOWN
        assert verdict(self.AUTH, visitor(accesskey="nobody", sign="  ")) is UNKNOWN


class TestAddresses:
    AUTH = Auth(addresses=("203.0.113.0/24", "2001:db8::/32"))
    BEHIND = Auth(addresses=("203.0.113.0/24",), proxies=("10.0.0.0/8", "::1/128"))

    @pytest.mark.parametrize("address", ["203.0.113.0", "203.0.113.255", "2001:db8::7", "::ffff:203.0.113.9"])
    def test_listed_ones_may_post(self, address: str) -> None:
        """A listener on both families sees IPv4 senders as ::ffff:…; they must not be strangers."""
        assert verdict(self.AUTH, visitor(address=address)) is WELCOME

    @pytest.mark.parametrize(
        "address",
        ["203.0.114.0", "127.0.0.1", "::1", "2001:db9::", "::ffff:127.0.0.1", "::cb00:7109", "", "unix:", "x"],
    )
    def test_all_others_may_not(self, address: str) -> None:
        """Loopback is everybody who came through a tunnel: it is not trusted by itself."""
        assert verdict(self.AUTH, visitor(address=address)) is FORBIDDEN

    def test_a_network_that_is_written_in_ipv6_holds_for_the_ipv4_it_means(self) -> None:
        """Copied from a log of a listener on both families, the line must mean what it says."""
        auth = Auth(addresses=("::ffff:203.0.113.0/120",))
        assert verdict(auth, visitor(address="::ffff:203.0.113.9")) is WELCOME
        assert verdict(auth, visitor(address="::ffff:203.0.114.9")) is FORBIDDEN

    def test_a_header_of_a_stranger_is_not_believed(self) -> None:
        """Anyone can write X-Forwarded-For; without listed proxies it says nothing."""
        who = visitor(address="198.51.100.1", x_forwarded_for="203.0.113.7")
        assert verdict(self.AUTH, who) is FORBIDDEN
        assert verdict(self.BEHIND, who) is FORBIDDEN

    def test_nor_does_it_shut_out_a_listed_sender(self) -> None:
        """A sender that writes nonsense there is still the sender."""
        assert verdict(self.BEHIND, visitor(address="203.0.113.7", x_forwarded_for="198.51.100.1")) is WELCOME

    @pytest.mark.parametrize(
        ("proxy", "chain"),
        [
            ("10.0.0.1", "203.0.113.7"),
            ("::1", "203.0.113.7"),
            ("::ffff:10.0.0.1", "203.0.113.7"),
            ("10.0.0.1", "::ffff:203.0.113.7"),
            ("10.0.0.1", "203.0.113.7, 10.0.0.2"),
            ("10.0.0.1", " 203.0.113.7 ,10.0.0.3,10.0.0.2 "),
            ("10.0.0.1", "198.51.100.1, 203.0.113.7, 10.0.0.2"),
            ("10.0.0.1", "nonsense, 203.0.113.7"),
            ("10.0.0.1", ", 203.0.113.7"),
        ],
    )
    def test_behind_proxies_the_last_address_that_is_no_proxys_counts(self, proxy: str, chain: str) -> None:
        """Each proxy appends whom it heard from: this is the last address that nobody could make up."""
        assert verdict(self.BEHIND, visitor(address=proxy, x_forwarded_for=chain)) is WELCOME

    @pytest.mark.parametrize(
        "chain",
        [
            "198.51.100.1",
            "203.0.113.7, 198.51.100.1",
            "203.0.113.7, 198.51.100.1, 10.0.0.2",
            "203.0.113.7, nonsense",
            "203.0.113.7,",
            "203.0.113.7,,10.0.0.2",
            "203.0.113.7:443",
            "203.0.113.7;198.51.100.1",
            "",
            " ",
            ",",
            "10.0.0.2",
            "unknown",
            "\xe9",
        ],
    )
    def test_what_the_sender_put_before_it_does_not_count(self, chain: str) -> None:
        """Taken from the front, the header lets anyone in who writes a listed address there."""
        assert verdict(self.BEHIND, visitor(address="10.0.0.1", x_forwarded_for=chain)) is FORBIDDEN

    @pytest.mark.parametrize("garbled", ["", " ", ",", "203.0.113.7,", "\xe9"])
    def test_a_garbled_chain_is_not_the_proxys_own_address(self, garbled: str) -> None:
        """Where the proxy itself may post, whoever makes its header unreadable would come in under its name."""
        auth = Auth(addresses=("10.0.0.1/32",), proxies=("10.0.0.1/32",))
        assert verdict(auth, visitor(address="10.0.0.1", x_forwarded_for=garbled)) is FORBIDDEN
        assert verdict(auth, visitor(address="10.0.0.1")) is WELCOME

    def test_a_proxy_that_says_nothing_is_the_sender_itself(self) -> None:
        """What runs on the proxy's machine posts without the header."""
        assert verdict(self.BEHIND, visitor(address="10.0.0.1")) is FORBIDDEN

    @given(
        st.lists(st.ip_addresses(v=4).map(str) | st.text(max_size=5).map(lambda text: text.replace(",", ""))),
        st.ip_addresses(v=4, network="198.51.100.0/24"),
    )
    def test_nothing_in_front_lets_a_stranger_in(self, made_up: list[str], stranger: object) -> None:
        """The proxy appends the stranger's own address; whatever stands before it is the stranger's invention."""
        chain = ", ".join([*made_up, str(stranger)])
        assert verdict(self.BEHIND, visitor(address="10.0.0.1", x_forwarded_for=chain)) is FORBIDDEN


@pytest.mark.parametrize("require", ["all", "any"])
def test_an_address_alone_lets_no_web_page_in(require: str) -> None:
    """The browser of somebody at home has an address that may post, whoever made the page that it shows."""
    auth = Auth(require=require, addresses=("203.0.113.0/24",))
    assert verdict(auth, visitor()) is WELCOME
    assert verdict(auth, visitor(origin="http://evil.example")) is BROWSER
    assert verdict(auth, visitor(address="192.0.2.1", origin="http://evil.example")) is FORBIDDEN


def test_who_knows_a_secret_may_use_a_browser() -> None:
    """A tool in a browser, to try the webhook with, is somebody's own."""
    auth = Auth(path_token=("t",))
    assert verdict(auth, visitor("t", origin="https://tool.example")) is WELCOME
    either = Auth(require="any", path_token=("t",), addresses=("203.0.113.0/24",))
    assert verdict(either, visitor("t", origin="https://tool.example")) is WELCOME
    assert verdict(either, visitor(origin="https://tool.example")) is not WELCOME


# Each way to be known: the setting, what a sender brings who is, and what one brings who is not.
Way = tuple[dict[str, Any], dict[str, Any], dict[str, Any], Verdict]
WAYS: dict[str, Way] = {
    "path": ({"path_token": ("token-1",)}, {"token": "token-1"}, {"token": "token-2"}, HIDDEN),
    "header": ({"header_token": ("t",)}, {"x_webhook_token": "t"}, {"x_webhook_token": "u"}, UNKNOWN),
    "basic": ({"basic": ("u:p",)}, {"authorization": basic("u:p")}, {"authorization": basic("u:q")}, UNKNOWN),
    "address": ({"addresses": ("203.0.113.7/32",)}, {"address": "203.0.113.7"}, {"address": "203.0.113.8"}, FORBIDDEN),
    "meta": (
        {"meta_app_secret": ("s",)},
        {"x_hub_signature_256": meta("s")},
        {"x_hub_signature_256": meta("t")},
        UNKNOWN,
    ),
    "vendor": ({"vendor_secret": ("key:secret",)}, vendor(), vendor(sign="0" * 64), UNKNOWN),
}
COMBINATIONS = [names for size in range(1, len(WAYS) + 1) for names in itertools.combinations(WAYS, size)]


def combined(names: tuple[str, ...], require: str) -> Auth:
    return Auth(require=require, **{key: value for name in names for key, value in WAYS[name][0].items()})


def brings(names: tuple[str, ...], known: frozenset[str]) -> Visitor:
    parts: dict[str, Any] = {}
    for name in names:
        parts |= WAYS[name][1 if name in known else 2]
    return visitor(**parts)


def subsets(names: tuple[str, ...]) -> list[frozenset[str]]:
    return [frozenset(some) for size in range(len(names) + 1) for some in itertools.combinations(names, size)]


class TestTogether:
    @pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
    def test_with_all_each_one_must_hold(self, names: tuple[str, ...]) -> None:
        """One way that is skipped beside another is a door that was thought locked."""
        auth = combined(names, "all")
        for known in subsets(names):
            found = verdict(auth, brings(names, known))
            if known == frozenset(names):
                assert found is WELCOME
            elif "path" in names and "path" not in known:
                assert found is HIDDEN
            elif "address" in names and "address" not in known:
                assert found is FORBIDDEN
            else:
                assert found is UNKNOWN

    @pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
    def test_with_any_one_is_enough_and_none_is_not(self, names: tuple[str, ...]) -> None:
        """Two vendors post to one webhook, each in its way; a stranger in neither."""
        auth = combined(names, "any")
        for known in subsets(names):
            who = brings(names, known)
            if "path" in names and "path" not in known:
                # A wrong token is a wrong path; no token at all leaves it to the others.
                assert verdict(auth, who) is HIDDEN
                who = Visitor("", who.header, who.address)
            assert (verdict(auth, who) is WELCOME) == bool(known), known

    def test_with_any_a_stranger_is_told_no_more_than_with_all(self) -> None:
        """With neither token nor signature, the path must not look like one where a secret is missing."""
        auth = combined(("path", "header"), "any")
        assert verdict(auth, visitor()) is UNKNOWN
        assert verdict(auth, visitor("token-2", x_webhook_token="t")) is HIDDEN

    def test_no_body_is_read_from_who_is_turned_away_already(self) -> None:
        """A stranger could keep the receiver busy with bodies that are thrown away."""
        auth = combined(("header", "meta"), "all")
        assert Gate(auth).before_body(visitor(x_webhook_token="u")) is UNKNOWN
        assert Gate(auth).before_body(visitor(x_webhook_token="t")) is None

    def test_with_any_no_signature_is_asked_of_who_is_known_already(self) -> None:
        """A sender that cannot sign has its own way in, and must not be asked for another's."""
        auth = combined(("header", "meta"), "any")
        assert Gate(auth).before_body(visitor(x_webhook_token="t")) is WELCOME
        assert Gate(auth).before_body(visitor(x_webhook_token="u")) is None


class TestCredentials:
    @pytest.mark.parametrize("names", [*((name,) for name in WAYS if name != "address"), tuple(WAYS)], ids="+".join)
    @pytest.mark.parametrize("body", [BODY, b""])
    def test_what_simulate_sends_is_let_in(self, names: tuple[str, ...], body: bytes) -> None:
        """`whatsapp2mqtt simulate` against one's own settings is how a user finds out whether they work."""
        auth = combined(names, "all")
        suffix, headers = credentials(auth, body, NOW)
        sent = {name.lower(): value for name, value in headers.items()}
        who = Visitor(suffix.removeprefix("/"), lambda name: sent.get(name.lower()), "203.0.113.7")
        assert verdict(auth, who, body) is WELCOME

    def test_the_first_of_each_is_sent(self) -> None:
        """The first is the new one when a secret is changed: this is the one to try."""
        auth = Auth(
            path_token=("token-1", "token-2"),
            header_name="X-Mine",
            header_token=("a", "b"),
            basic=("u:p", "v:q"),
            meta_app_secret=("s", "t"),
            vendor_secret=("key:secret", "other:secret"),
        )
        suffix, headers = credentials(auth, BODY, NOW)
        assert suffix == "/token-1"
        signed = vendor(action="callback", biztype="whatsapp", ts="1767225600250")
        assert headers == {
            "X-Mine": "a",
            "Authorization": basic("u:p"),
            "X-Hub-Signature-256": meta("s"),
            **signed,
        }

    def test_nothing_set_sends_nothing(self) -> None:
        """A header that nobody asked for would go to whatever address --url names."""
        assert credentials(Auth(), BODY, NOW) == ("", {})


class TestComparing:
    @given(st.text(), st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
    def test_it_is_equality_and_never_raises(self, given_text: str, secrets: list[str]) -> None:
        """A header that makes the comparison raise would be answered as a fault of ours, and sent again for days."""
        try:
            given_text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return  # no server makes such text of bytes
        assert is_one_of(given_text, secrets) == (given_text in secrets)

    def test_all_secrets_are_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stopping at the first match, the time would tell which of the secrets is in use."""
        compared: list[bytes] = []

        def compare(one: bytes, other: bytes) -> bool:
            compared.append(other)
            return one == other

        monkeypatch.setattr("bridge.auth.hmac.compare_digest", compare)
        assert is_one_of("a", ["a", "b", "c"])
        assert is_one_of(b"c", ["a", "b", "c"])
        assert compared == [b"a", b"b", b"c"] * 2
