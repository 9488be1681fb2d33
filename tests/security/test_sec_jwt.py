"""SEC-11 to SEC-18: what is not exactly one of our access tokens is a 401, quickly, and never a 500."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, RSAKey
from sqlalchemy import delete, insert

from bithaul.cli.main import run
from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.identity.keys import SigningKeys
from bithaul.coordinator.identity.tables import denied_tokens, signing_keys
from bithaul.errors import Conflict
from bithaul.exchange.messages import ADMIN_SCOPE

shared_site = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "k"}


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Forge:
    """Makes tokens like ours, with anything changed, signed by our own key unless told otherwise."""

    def __init__(self, site):
        site.client("w1")
        self.site = site
        with site.c.database.read() as connection:
            self.kid, self.key = SigningKeys(site.c).signer(connection)
        self.token = site.token("w1")
        header, claims, self.signature = self.token.split(".")
        self.header, self.claims = json.loads(unb64(header)), json.loads(unb64(claims))

    def status(self, token):
        """401 when refused; 404 when proven, because this coordinator has no run."""
        return self.site.http.get(
            "/weights/current", headers={"Authorization": f"Bearer {token}".strip()}
        ).status_code

    def make(self, *, header=None, claims=None, without=(), key=None, raw_claims=None):
        full_header = {k: v for k, v in {**self.header, **(header or {})}.items() if v is not None}
        full_claims = {k: v for k, v in {**self.claims, **(claims or {})}.items() if k not in without}
        body = raw_claims if raw_claims is not None else json.dumps(full_claims)
        registry = jws.JWSRegistry(algorithms=[full_header["alg"]], strict_check_header=False)
        registry.max_header_length = 100_000
        return jws.serialize_compact(full_header, body, key or self.key, registry=registry)

    def unsigned(self, header, *, signature="", claims=None):
        body = b64(json.dumps({**self.claims, **(claims or {})}).encode())
        return f"{b64(json.dumps(header).encode())}.{body}.{signature}"

    def hmac(self, header, secret):
        text = self.unsigned(header).removesuffix(".")
        return f"{text}.{b64(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


@pytest.fixture
def forge(site):
    forge = Forge(site)
    assert forge.status(forge.token) == 404  # proven; there is no run
    assert forge.status(forge.make()) == 404  # the forge makes good tokens when nothing is changed
    return forge


def test_sec_11_other_algorithms(forge):
    """Wrong result: alg none, or our public key taken for an HMAC secret."""
    for name in ("none", "None", "NONE", "nOnE", ""):
        assert forge.status(forge.unsigned({**forge.header, "alg": name})) == 401
        assert forge.status(forge.unsigned({**forge.header, "alg": name}, signature=forge.signature)) == 401
    pem = forge.key.as_pem(private=False)
    jwk = json.dumps(forge.key.as_dict(private=False)).encode()
    for secret in (pem, pem.strip(), jwk):
        assert forge.status(forge.hmac({**forge.header, "alg": "HS256"}, secret)) == 401
        assert forge.status(forge.hmac({**forge.header, "alg": "RS256"}, secret)) == 401
    for name in ("RS384", "RS512", "PS256"):
        assert forge.status(forge.make(header={"alg": name})) == 401
    assert forge.status(forge.make(header={"alg": "ES256"}, key=ECKey.generate_key("P-256"))) == 401
    assert forge.status(forge.make(header={"alg": "HS256"}, key=OctKey.import_key("x" * 32))) == 401


def test_sec_12_key_ids(forge, site):
    ids = [
        "unknown",
        None,
        "../../etc/passwd",
        "x' OR '1'='1",
        "k" * 3000,
        "k" * 10_000,
        "",
        7,
        ["x"],
        {"a": 1},
    ]
    for kid in ids:
        if kid is None or isinstance(kid, str):
            assert forge.status(forge.make(header={"kid": kid})) == 401, kid
        assert forge.status(forge.unsigned({**forge.header, "kid": kid}, signature=forge.signature)) == 401, (
            kid
        )
    stranger = RSAKey.generate_key(2048)
    assert forge.status(forge.make(key=stranger)) == 401
    assert forge.status(forge.make(header={"kid": stranger.thumbprint()}, key=stranger)) == 401
    with site.c.database.write() as connection:
        connection.execute(delete(signing_keys).where(signing_keys.c.kid == forge.kid))
    assert forge.status(forge.token) == 401


def test_sec_13_headers_that_bring_their_own_key(forge, monkeypatch):
    """Wrong result: a key from the token is trusted, or fetched."""
    stranger = RSAKey.generate_key(2048)
    public = stranger.as_dict(private=False)
    connects = []
    real = socket.socket.connect

    def connect(self, address):
        connects.append(address)
        assert address[0] == "127.0.0.1"
        assert address[1] == forge.site.port
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    extras = [
        {"jwk": public},
        {"jku": "http://127.0.0.1:9/jwks.json"},
        {"x5u": "http://127.0.0.1:9/x"},
        {"x5c": ["MIIB"]},
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"zip": "DEF"},
        {"extra": 1},
    ]
    for extra in extras:
        assert forge.status(forge.unsigned({**forge.header, **extra}, signature=forge.signature)) == 401, (
            extra
        )
    for extra in ({"jwk": public}, {"jku": "http://127.0.0.1:9/jwks.json"}, {"extra": 1}):
        assert forge.status(forge.make(header=extra)) == 401, extra
        assert (
            forge.status(forge.make(header={**extra, "kid": stranger.thumbprint()}, key=stranger)) == 401
        ), extra


def test_sec_14_type(forge):
    """A9. Wrong result: an ID token, or any JWT of ours, is an access token."""
    for typ in (None, "JWT", "jwt", "", "id+jwt", "at+jwt2", 1):
        header = {**forge.header, "typ": typ}
        if typ is None:
            del header["typ"]
        assert forge.status(forge.unsigned(header, signature=forge.signature)) == 401
        if typ is None or isinstance(typ, str):
            assert forge.status(forge.make(header={"typ": typ})) == 401, typ
    for typ in ("AT+JWT", "application/at+jwt"):
        assert forge.status(forge.make(header={"typ": typ})) == 404


def test_sec_15_claims(forge, site):
    now = int(site.clock.time)
    issuer = forge.claims["iss"]
    wrong = [
        *({"iss": value} for value in (issuer + "/", issuer.upper(), "https://evil", None, 1, [issuer])),
        *({"aud": value} for value in ("other", ["other"], [], None, 1, "bithaul2", {"bithaul": 1})),
        *({"exp": value} for value in (str(now + 60), -1, now - 30, True, None, [now], now + 60.5, 0)),
        *({"iat": value} for value in (now + 31, str(now), -5, None, 1.5)),
        *({"nbf": value} for value in (now + 31, str(now), None, 0.5)),
        *({"sub": value} for value in ("w2", None, 1, ["w1"])),
        *({"client_id": value} for value in ("w2", None, 1)),
        *(
            {"scope": value}
            for value in (ADMIN_SCOPE, "", None, ["bithaul.worker"], "bithaul.worker bithaul.admin")
        ),
        *({"cv": value} for value in (0, 2, "1", True, None, 1.0)),
        *({"jti": value} for value in (None, 1)),
        {"sub": "w2", "client_id": "w2"},
    ]
    for claims in wrong:
        assert forge.status(forge.make(claims=claims)) == 401, claims
    for name in ("iss", "aud", "exp", "iat", "sub", "client_id", "scope", "cv", "jti"):
        assert forge.status(forge.make(without=(name,))) == 401, name
    body = json.dumps({k: v for k, v in forge.claims.items() if k != "exp"})[:-1]
    for raw in ("NaN", "Infinity", "1e309", "-Infinity", "9" * 5000, "1e400"):
        assert forge.status(forge.make(raw_claims=f'{body}, "exp": {raw}}}')) == 401, raw
    for raw in ("[]", "null", '"x"', "{", "", "[" * 2_000):
        assert forge.status(forge.make(raw_claims=raw)) == 401, raw[:20]
    right = [
        {"aud": ["x", "bithaul"]},
        {"exp": now - 29},
        {"iat": now + 30},
        {"nbf": now + 30},
        {"nbf": now - 9},
    ]
    for claims in right:
        if claims.get("exp"):
            claims["iat"] = now - 100
        assert forge.status(forge.make(claims=claims)) == 404, claims


def test_sec_15_expiry_to_the_second(forge, site):
    site.clock.time = forge.claims["exp"] + 29.9
    assert forge.status(forge.token) == 404
    site.clock.time = forge.claims["exp"] + 30
    assert forge.status(forge.token) == 401


def test_sec_15_a_denied_token_is_refused(forge, site):
    with site.c.database.write() as connection:
        connection.execute(
            insert(denied_tokens).values(jti=forge.claims["jti"], expires_at=forge.claims["exp"])
        )
    assert forge.status(forge.token) == 401


@shared_site
@given(st.data())
def test_sec_16_flipped_bits(forge, data):
    """Wrong result: a second spelling of the same bytes, or of other bytes, is accepted."""
    raw = bytearray(forge.token.encode())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 6))
    changed = "".join(chr(byte) if 32 < byte < 127 else "~" for byte in raw)
    assert changed != forge.token
    assert forge.status(changed) == 401


@shared_site
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=300))
def test_sec_16_any_text(forge, text):
    assert forge.status(text) == 401


ODD_NAMES = ["\ud800", "a\0b", "\N{LATIN SMALL LETTER E WITH ACUTE}", "a" * 65, "", ["w1"], {"a": 1}, 7, True]


@pytest.mark.parametrize("odd", ODD_NAMES, ids=map(repr, range(len(ODD_NAMES))))
def test_sec_16_signed_tokens_with_odd_names_are_a_401(forge, odd):
    """Found by the fuzzer that signs. Wrong result: a 500 of a database that cannot look such a name up."""
    for name in ("client_id", "sub", "jti", "sid"):
        assert forge.status(forge.make(claims={name: odd})) == 401, name
    assert forge.status(forge.make(claims={"client_id": odd, "sub": odd})) == 401
    hint = forge.make(header={"typ": "JWT"}, claims={"aud": odd, "sid": "s"}, without=("scope",))
    url = "/connect/endsession?post_logout_redirect_uri=https%3A%2F%2Fapp.example&id_token_hint="
    assert forge.site.http.get(url + hint).status_code == 400


def test_sec_16_a_second_spelling_of_the_same_signature(forge):
    """256 bytes leave four unused bits in the last character: 16 spellings, of which one is right."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(forge.token[-1])
    spellings = [forge.token[:-1] + alphabet[last ^ bits] for bits in range(16)]
    assert len({unb64(spelling.split(".")[2]) for spelling in spellings}) == 1
    assert [forge.status(spelling) for spelling in spellings] == [404] + [401] * 15


def test_sec_16_segments_padding_and_size(forge):
    one, two, three = forge.token.split(".")
    started = time.perf_counter()
    for token in (
        f"{one}.{two}",
        f"{one}.{two}.{three}.",
        f".{one}.{two}.{three}",
        f"{one}.{two}.{three}.{three}.{three}",
        f"{one}=.{two}.{three}",
        f"{one}.{two}=.{three}",
        f"{one}.{two}.{three}=",
        f"{one}.{two}.{three}==",
        f"{one}. {two}.{three}",
        f"{one}.{two}.",
        "..",
        "",
        " ",
        forge.token + " x",
        forge.token.replace("-", "+").replace("_", "/") + "+",
        "a" * 4096,
        "." * 4097,
        "a." * 10_000,
    ):
        assert forge.status(token) == 401, token[:40]
    assert time.perf_counter() - started < 2
    assert forge.status("a" * 65_536) in (401, 431)


def test_sec_17_key_rotation(site):
    """Wrong results: tokens die with their key, a key signs before anyone can know it, JWKS shows d."""
    keys = SigningKeys(site.c)

    def published():
        response = site.http.get("/.well-known/jwks.json")
        found = response.json()["keys"]
        assert not [key for key in found if PRIVATE & set(key)]
        return [key["kid"] for key in found]

    def kid_of(token):
        return json.loads(unb64(token.split(".")[0]))["kid"]

    def status(token):
        return site.http.get("/weights/current", headers={"Authorization": f"Bearer {token}"}).status_code

    old = site.token()
    first = published()
    assert len(first) == 2
    assert kid_of(old) in first
    with pytest.raises(Conflict):
        keys.rotate()  # the next key is too young to be known everywhere
    site.clock.time += 300
    keys.rotate()
    assert set(first) < set(published())
    new = site.token()
    assert kid_of(new) != kid_of(old)
    assert kid_of(new) in first
    assert (status(old), status(new)) == (404, 404)
    site.restart()
    assert (status(old), status(new)) == (404, 404)
    site.clock.time += 3330
    assert (status(old), status(new)) == (401, 404)  # the old token has expired by itself
    assert kid_of(old) not in published() or site.clock.time < 3630 + 300 + 1_800_000_000
    site.clock.time += 300
    SigningKeys(site.c).rotate()
    assert kid_of(old) not in published()
    assert [state.state for state in SigningKeys(site.c).states()].count("active") == 1


def test_sec_17_leaked_keys_are_replaced_at_once(forge, site):
    """Wrong result: who has copied the keys mints tokens for another hour, as their rotation allows."""
    now = int(time.time())
    site.clock.time = float(now)  # as the command's: of a key that is only retired tokens live for an hour
    lately = {"iat": now, "exp": now + 600}
    old, old_id = forge.make(claims=lately), SigningKeys(site.c).jwks()["keys"]
    assert forge.status(old) == 404
    hint = forge.make(header={"typ": "JWT"}, claims={"aud": "app", "sid": "s"}, without=("scope",))
    ends = f"/connect/endsession?id_token_hint={hint}"
    assert site.http.get(ends).status_code == 303
    with pytest.raises(SystemExit) as ended:
        run(["keys", "rotate-signing", "--leaked", "--dir", str(site.directory)])
    assert ended.value.code == 0
    assert forge.status(old) == 401
    assert forge.status(forge.make(claims=lately)) == 401, "minted with the copied key after it was replaced"
    assert site.http.get(ends).status_code == 400, "an ID token of theirs is no hint any more"
    assert forge.status(site.token("w1")) == 404, "the coordinator signs with the new one, without a restart"
    shown = site.http.get("/.well-known/jwks.json").json()["keys"]
    assert len(shown) == 2
    assert not {key["kid"] for key in shown} & {key["kid"] for key in old_id}
    assert [row.action for row in read_audit(site.c, limit=9, action="signing-key")] == [
        "signing-key.replace-all"
    ]


def test_sec_17_a_token_of_a_retired_key_dies_with_the_key(forge, site):
    site.clock.time += 300
    SigningKeys(site.c).rotate()
    site.clock.time += 3631
    now = int(site.clock.time)
    assert forge.status(forge.make(claims={"iat": now, "exp": now + 60})) == 401


def test_sec_18_one_place_for_the_token(forge, site):
    token = forge.token
    get = site.http.get
    assert get(f"/weights/current?access_token={token}").status_code == 401
    assert (
        get("/weights/current", headers={"Cookie": f"access_token={token}; token={token}"}).status_code == 401
    )
    twice = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
    assert get("/weights/current", headers=twice).status_code == 400
    for scheme in ("bearer", "BEARER", "bEaReR"):
        assert get("/weights/current", headers={"Authorization": f"{scheme} {token}"}).status_code == 404
    for scheme in ("Basic", "Token", "", "DPoP"):
        assert (
            get("/weights/current", headers={"Authorization": f"{scheme} {token}".strip()}).status_code == 401
        )
    missing = get("/weights/current")
    wrong = get("/weights/current", headers={"Authorization": "Bearer x"})
    assert (missing.status_code, missing.text) == (wrong.status_code, wrong.text)
    assert missing.headers["www-authenticate"].startswith("Bearer ")
