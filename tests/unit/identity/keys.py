"""Key pairs of tests, made once, and the forms in which they are handed over."""

import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

FAR = 4_102_444_800
"""2100-01-01, seconds since 1970."""


@cache
def private_key(algorithm: str, name: str = "") -> Any:
    """A private key for an algorithm; another one for another name."""
    del name
    if algorithm.startswith(("RS", "PS")):
        return rsa.generate_private_key(65537, 2048)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP384R1() if algorithm == "ES384" else ec.SECP256R1())


def public_pem(algorithm: str, name: str = "") -> str:
    key = private_key(algorithm, name).public_key()
    return str(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def private_pem(algorithm: str, name: str = "") -> str:
    key = private_key(algorithm, name)
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def jwk(algorithm: str, name: str = "", **more: object) -> dict[str, Any]:
    """The public key as a JWK; `more` members take the place of its own."""
    key = private_key(algorithm, name).public_key()
    kind: Any = RSAAlgorithm if algorithm[0] in "RP" else OKPAlgorithm if algorithm == "EdDSA" else ECAlgorithm
    return {**json.loads(kind.to_jwk(key)), "alg": algorithm, "use": "sig", **more}


def signed(algorithm: str, name: str = "", kid: str | None = None, **claims: object) -> str:
    headers = None if kid is None else {"kid": kid}
    claims = {"sub": "ann", "exp": FAR, **claims}
    return jwt.encode(claims, private_key(algorithm, name), algorithm, headers)
