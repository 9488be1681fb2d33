"""SEC-25 and both grants with clients that are not ours: Authlib's, and oauthlib with requests-oauthlib.

Over TLS with a throw-away certificate, because oauthlib refuses plain http and that refusal stays on. Tokens
are verified with `cryptography` alone.
"""

from __future__ import annotations

import base64
import datetime
import json
import socket
import ssl
import threading
from urllib.parse import parse_qs, urlsplit

import pytest
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from oauthlib.oauth2 import BackendApplicationClient, InsecureTransportError
from requests_oauthlib import OAuth2Session

from bithaul.coordinator.identity.apps import register_app
from bithaul.coordinator.identity.throttle import Limits
from bithaul.exchange.messages import ADMIN_SCOPE, WORKER_SCOPE

CALLBACK = "https://app.example/cb"


class Tls:
    """Ends TLS on a port of this machine and passes bytes on to a plain port."""

    def __init__(self, folder):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        day = datetime.timedelta(days=1)
        now = datetime.datetime.now(tz=datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        (folder / "key.pem").write_bytes(secret)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.ca, folder / "key.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self._listener.getsockname()[1]}"
        self.port = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(raw,), daemon=True).start()

    def _relay(self, raw):
        try:
            with (
                self._context.wrap_socket(raw, server_side=True) as outside,
                socket.create_connection(("127.0.0.1", self.port)) as inside,
            ):
                back = threading.Thread(target=self._copy, args=(inside, outside), daemon=True)
                back.start()
                self._copy(outside, inside)
                back.join(5)
        except OSError:
            pass

    @staticmethod
    def _copy(source, target):
        try:
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        self._listener.close()


@pytest.fixture
def tls(tmp_path):
    tls = Tls(tmp_path)
    yield tls
    tls.close()


@pytest.fixture
def site(tls, make_site):
    """A coordinator whose public URL is the TLS port."""
    site = make_site(Limits(), public_url=tls.url)
    tls.port = site.port
    return site


def trust(http, tls):
    http.verify = str(tls.ca)
    http.trust_env = False  # a CA bundle in the environment would win over `verify`


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def verified(token, jwks):
    """Header and claims, after the signature was checked with a library that is not the provider's."""
    head, body, signature = token.split(".")
    header = json.loads(unb64(head))
    (key,) = [key for key in jwks["keys"] if key["kid"] == header["kid"]]
    n, e = (int.from_bytes(unb64(key[name]), "big") for name in ("n", "e"))
    public = rsa.RSAPublicNumbers(e, n).public_key()
    public.verify(unb64(signature), f"{head}.{body}".encode(), padding.PKCS1v15(), hashes.SHA256())
    return header, json.loads(unb64(body))


def come_back(site, url):
    """What the browser of a person brings to the application."""
    browser = site.browser()
    answer = browser.sign_in(url=url)
    assert answer.status_code == 303, answer.text
    done = browser.get(answer.headers["location"])
    return done.headers["location"]


def check_tokens(site, tls, http, token, nonce):
    document = http.get(f"{tls.url}/.well-known/openid-configuration").json()
    jwks = http.get(document["jwks_uri"]).json()
    header, claims = verified(token["id_token"], jwks)
    assert (header["alg"], claims["iss"], claims["aud"]) == ("RS256", tls.url, "app")
    assert (claims["nonce"], claims["exp"] - claims["iat"]) == (nonce, 300)
    header, access = verified(token["access_token"], jwks)
    assert (header["typ"], access["sub"]) == ("at+jwt", claims["sub"])
    about = http.get(document["userinfo_endpoint"])
    assert (about.status_code, about.json()["preferred_username"]) == (200, "ann")


def test_sec_25_authlib_signs_a_person_in(site, tls):
    site.person()
    secret = register_app(site.c, "app", redirect_uris=[CALLBACK])
    http = AuthlibSession(
        "app", secret, scope="openid profile", redirect_uri=CALLBACK, code_challenge_method="S256"
    )
    trust(http, tls)
    document = http.get(f"{tls.url}/.well-known/openid-configuration", withhold_token=True).json()
    verifier = "v" * 64
    url, state = http.create_authorization_url(
        document["authorization_endpoint"], nonce="n-1", code_verifier=verifier
    )
    back = come_back(site, url)
    assert parse_qs(urlsplit(back).query)["iss"] == [tls.url]
    token = http.fetch_token(
        document["token_endpoint"], authorization_response=back, code_verifier=verifier, state=state
    )
    check_tokens(site, tls, http, token, "n-1")
    assert http.revoke_token(document["revocation_endpoint"], token["access_token"]).status_code == 200
    assert http.get(document["userinfo_endpoint"]).status_code == 401
    http.close()


def test_sec_25_oauthlib_signs_a_person_in(site, tls):
    site.person()
    secret = register_app(site.c, "app", redirect_uris=[CALLBACK])
    http = OAuth2Session("app", scope=["openid", "profile"], redirect_uri=CALLBACK, pkce="S256")
    trust(http, tls)
    url, _ = http.authorization_url(f"{tls.url}/connect/authorize", nonce="n-2")
    back = come_back(site, url)
    token = http.fetch_token(f"{tls.url}/connect/token", authorization_response=back, client_secret=secret)
    check_tokens(site, tls, http, token, "n-2")
    http.close()


@pytest.mark.parametrize("scope", [WORKER_SCOPE, ADMIN_SCOPE])
def test_sec_25_both_clients_get_tokens_for_machines(site, tls, scope):
    secret = site.client("machine", scope=scope)
    path = "/work" if scope == WORKER_SCOPE else "/api/keys"
    one = AuthlibSession("machine", secret)
    trust(one, tls)
    one.fetch_token(f"{tls.url}/connect/token", grant_type="client_credentials")
    two = OAuth2Session(client=BackendApplicationClient("machine"))
    trust(two, tls)
    two.fetch_token(f"{tls.url}/connect/token", client_id="machine", client_secret=secret)
    for http in (one, two):
        assert http.get(f"{tls.url}{path}").status_code not in (401, 403)
        http.close()


def test_sec_25_oauthlib_refuses_plain_http(site):
    """The refusal that makes the others mean something."""
    http = OAuth2Session(client=BackendApplicationClient("machine"))
    with pytest.raises(InsecureTransportError):
        http.fetch_token(f"http://127.0.0.1:{site.port}/connect/token", client_secret="x")
    http.close()
