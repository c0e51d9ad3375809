"""Google Cloud Storage and Azure Blob Storage as far as a cache talks to them: listing, reading by signed address, writing in parts.

Signatures are checked as the services do, so an address that is signed for another object, or was changed, or ran out is refused.
Sources: cloud.google.com/storage/docs/xml-api/overview, .../access-control/signing-urls-manually (V4, RSA);
learn.microsoft.com/rest/api/storageservices/create-service-sas (versions from 2020-12-06), .../authorize-with-shared-key, .../list-blobs.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from loopback import http

ACCOUNT = "account"
KEY = base64.b64encode(b"canary-secret" * 4).decode()
EMAIL = "robot@project.iam.gserviceaccount.com"
SIGNED_HOST = "storage.googleapis.com"
"""The library signs for this host wherever it is told that the service is. Source: apache/arrow-rs-object-store gcp/credential.rs."""
_RSA = rsa.generate_private_key(65537, 2048)


class Cloud:
    """What is stored, as (bucket or container, path) -> content, and what was asked."""

    def __init__(self) -> None:
        self.buckets = {"models"}
        self.objects: dict[tuple[str, str], bytes] = {}
        self.requests: list[str] = []
        self.refused: list[str] = []
        self.expired = 0
        """So many of the next signed reads are refused as too late."""
        self.parts: dict[tuple[str, str], dict[str, bytes]] = {}


@contextmanager
def serving(cloud: Cloud, kind: str) -> Iterator[str]:
    """The address of a server of the kind `gs` or `az`."""
    handler = type("Handler", (_Google if kind == "gs" else _Azure,), {"cloud": cloud})
    with http(handler) as address:
        yield address


def service_account(address: str) -> str:
    """Google's file of credentials, for a server at an address of ours."""
    key = _RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return json.dumps(
        {"gcs_base_url": address, "client_email": EMAIL, "private_key": key, "private_key_id": "canary-secret"}
    )


class _Handler(BaseHTTPRequestHandler):
    cloud: Cloud
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.cloud.refused.append(f"{self.command} {urlsplit(self.path).path} {code}")
        self.send(status, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode(), x_ms_error_code=code)

    def give(self, content: bytes) -> None:
        tag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        shared = {"ETag": tag, "Last_Modified": format_datetime(dt.datetime.now(dt.UTC), usegmt=True)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if asked is None:
            self.send(200, content, **shared)
            return
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
        self.send(206, content[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(content)}", **shared)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def listed(self, bucket: str, prefix: str) -> list[tuple[str, int, str]]:
        return [
            (path, len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())
            for (place, path), content in sorted(self.cloud.objects.items())
            if place == bucket and path.startswith(prefix)
        ]

    def do_GET(self) -> None:
        body = self.body()
        parts = urlsplit(self.path)
        self.cloud.requests.append(f"{self.command} {parts.path}")
        self.answer(parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), body)

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815 - the names that the library calls

    def answer(self, path: str, query: dict[str, str], body: bytes) -> None:
        raise NotImplementedError


class _Google(_Handler):
    """The XML interface."""

    def answer(self, path: str, query: dict[str, str], body: bytes) -> None:
        bucket, _, name = unquote(path).lstrip("/").partition("/")
        if not self._may(path, query):
            self.refuse(403, "AccessDenied" if "X-Goog-Signature" not in query else "ExpiredToken")
        elif bucket not in self.cloud.buckets:
            self.refuse(404, "NoSuchBucket")
        elif not name and self.command == "GET":
            found = "".join(
                f'<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>"{tag}"</ETag>'
                "<LastModified>2026-11-28T00:00:00.000Z</LastModified></Contents>"
                for key, size, tag in self.listed(bucket, query.get("prefix", ""))
            )
            self.send(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode())
        elif self.command in ("GET", "HEAD"):
            content = self.cloud.objects.get((bucket, name))
            self.give(content) if content is not None else self.refuse(404, "NoSuchKey")
        elif self.command == "POST" and "uploads" in query:
            self.cloud.parts[bucket, name] = {}
            self.send(200, b"<InitiateMultipartUploadResult><UploadId>7</UploadId></InitiateMultipartUploadResult>")
        elif self.command == "PUT" and "partNumber" in query:
            self.cloud.parts[bucket, name][query["partNumber"].zfill(6)] = body
            self.send(200, ETag=f'"{len(body)}"')
        elif self.command == "POST" and "uploadId" in query:
            kept = self.cloud.parts.pop((bucket, name))
            self.cloud.objects[bucket, name] = b"".join(content for _, content in sorted(kept.items()))
            self.send(200, b'<CompleteMultipartUploadResult><ETag>"1"</ETag></CompleteMultipartUploadResult>')
        else:
            self.cloud.objects[bucket, name] = body
            self.send(200, ETag='"1"')

    def _may(self, path: str, query: dict[str, str]) -> bool:
        if "X-Goog-Signature" not in query:
            return self._is_token((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if self.cloud.expired > 0:
            self.cloud.expired -= 1
            return False
        begun = dt.datetime.strptime(query["X-Goog-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
        if dt.datetime.now(dt.UTC) > begun + dt.timedelta(seconds=int(query["X-Goog-Expires"])):
            return False
        signed = "&".join(
            f"{quote(key, safe='-_.~')}={quote(value, safe='-_.~')}"
            for key, value in sorted(query.items())
            if key != "X-Goog-Signature"
        )
        request = f"{self.command}\n{path}\n{signed}\nhost:{SIGNED_HOST}\n\nhost\nUNSIGNED-PAYLOAD"
        email, _, scope = query["X-Goog-Credential"].partition("/")
        text = f"GOOG4-RSA-SHA256\n{query['X-Goog-Date']}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        return email == EMAIL and _proves(bytes.fromhex(query["X-Goog-Signature"]), text.encode())

    @staticmethod
    def _is_token(token: str) -> bool:
        head, _, signature = token.rpartition(".")
        return bool(head) and _proves(base64.urlsafe_b64decode(signature + "=="), head.encode())


def _proves(signature: bytes, text: bytes) -> bool:
    try:
        _RSA.public_key().verify(signature, text, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


class _Azure(_Handler):
    """Blobs, with the account in the path as its emulator has it."""

    def answer(self, path: str, query: dict[str, str], body: bytes) -> None:
        account, _, rest = unquote(path).lstrip("/").partition("/")
        container, _, name = rest.partition("/")
        if account != ACCOUNT or not self._may(rest, query):
            self.refuse(403, "AuthenticationFailed")
        elif container not in self.cloud.buckets:
            self.refuse(404, "ContainerNotFound")
        elif query.get("comp") == "list":
            found = "".join(
                f"<Blob><Name>{escape(key)}</Name><Properties><Content-Length>{size}</Content-Length><Etag>{tag}</Etag>"
                "<Last-Modified>Sat, 28 Nov 2026 00:00:00 GMT</Last-Modified><Content-Type>x</Content-Type></Properties></Blob>"
                for key, size, tag in self.listed(container, query.get("prefix", ""))
            )
            self.send(200, f"<EnumerationResults><Blobs>{found}</Blobs><NextMarker/></EnumerationResults>".encode())
        elif self.command in ("GET", "HEAD"):
            content = self.cloud.objects.get((container, name))
            self.give(content) if content is not None else self.refuse(404, "BlobNotFound")
        elif query.get("comp") == "block":
            self.cloud.parts.setdefault((container, name), {})[query["blockid"]] = body
            self.send(201)
        elif query.get("comp") == "blocklist":
            kept = self.cloud.parts.pop((container, name))
            order = re.findall(r"<(?:Uncommitted|Latest)>(.+?)</", body.decode())
            self.cloud.objects[container, name] = b"".join(kept[each] for each in order)
            self.send(201, ETag='"1"', Last_Modified="Sat, 28 Nov 2026 00:00:00 GMT")
        else:
            self.cloud.objects[container, name] = body
            self.send(201, ETag='"1"', Last_Modified="Sat, 28 Nov 2026 00:00:00 GMT")

    def _may(self, blob: str, query: dict[str, str]) -> bool:
        if "sig" not in query:
            return (self.headers.get("Authorization") or "").startswith(f"SharedKey {ACCOUNT}:")
        if self.cloud.expired > 0:
            self.cloud.expired -= 1
            return False
        if dt.datetime.now(dt.UTC) > dt.datetime.fromisoformat(query["se"]):
            return False
        fields = (
            query.get("sp", ""), query.get("st", ""), query["se"], f"/blob/{ACCOUNT}/{blob}",
            "", "", query.get("spr", ""), query["sv"], query["sr"], "", "", "", "", "", "", "",
        )  # fmt: skip
        digest = hmac.new(base64.b64decode(KEY), "\n".join(fields).encode(), hashlib.sha256).digest()
        return hmac.compare_digest(query["sig"], base64.b64encode(digest).decode())
