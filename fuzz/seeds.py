#!/usr/bin/env python3
"""Writes a small corpus for each fuzz target: seeds.py DIRECTORY.

What is valid is made here, piece by piece, so that no large file needs to be kept; libFuzzer's
mutations do the rest.
"""

import itertools
import json
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).resolve().parent
HASH = "0" * 64
ID = "20261121T030000Z-7f3a"


def integer(value):
    return bytes([value < 0]) + struct.pack("<I", abs(value))


def string(text):
    return integer(-1) if text is None else integer(len(text.encode())) + text.encode()


def archive(minor, entries):
    """An uncompressed custom archive: entries are (id, description, tag, chunks or None)."""
    out = b"PGDMP" + bytes([1, minor, 0, 4, 8, 1])
    out += b"\0" if minor >= 15 else integer(0)
    out += b"".join(integer(part) for part in (1, 2, 3, 4, 10, 126, 0))
    out += string("shop") + string("17.11") + string("17.11") + integer(len(entries))
    for number, description, tag, body in entries:
        has_data = body is not None
        copy = f"COPY public.{tag} (a) FROM stdin;\n" if description == "TABLE DATA" else None
        out += integer(number) + integer(has_data) + string("0") + string("16384")
        definition = "SET client_encoding = 'UTF8';\n" if description == "ENCODING" else "CREATE SOMETHING;\n"
        out += string(tag) + string(description) + integer(3) + string(definition) + string(None)
        out += string(copy) + string("public") + string(None) + string("heap")
        out += integer(114) if minor >= 16 else b""
        out += string("owner") + string("false") + string("7") + string(None) + b"\1" + bytes(8)
    for number, description, _, body in entries:
        if description == "TABLE DATA":
            out += b"\1" + integer(number)
            out += b"".join(integer(len(chunk)) + chunk for chunk in body) + integer(0)
        elif body is not None:
            out += b"\3" + integer(number)
            for oid, content in body:
                out += integer(oid) + integer(len(content)) + content + integer(0)
            out += integer(0)
    return out


def archives():
    rows = [b"1\n", b"a longer row\n", b"\\N\n", b"\\.\n\n\n"]
    table = (2, "TABLE DATA", "t", rows)
    plain = [(1, "TABLE", "t", None), table, (5, "SEQUENCE SET", "s", None)]
    blobs = [(9, "BLOBS", "BLOBS", [(70001, b"large"), (70002, b"")])]
    for minor, entries in itertools.product((14, 15, 16), (plain, plain + blobs, [])):
        for piece in (1, 7, 255):
            yield bytes([piece]) + archive(minor, entries)
    yield b"\1" + archive(99, plain)
    yield b"\1SELECT pg_catalog.setval('public.s', 17, true);\n"
    yield b'\1COPY public."o""dd.Name" (a, "b c") FROM stdin;\n'
    yield b"\1SET client_encoding = 'UTF8';\n"


def tables():
    encoding = (1, "ENCODING", "ENCODING", None)
    for minor, rows in itertools.product((14, 16), ([b"1\n", b"2\n", b"\\.\n\n\n"], [])):
        whole = archive(minor, [encoding, (2, "TABLE DATA", "t", rows)])
        yield from (bytes([piece]) + whole for piece in (1, 9, 255))
        yield b"\x20" + whole[:-7]


def packets():
    whole = b"\x20\2\0\0\x90\3\0\1\0\xd0\0\x30\x0a\0\6$SYS/xhi\x33\7\0\1t\0\x09hi"
    yield from (bytes([piece]) + whole for piece in (1, 3, 255))
    yield b"\1\x30\xff\xff\x7f"
    yield b"\xff" + b"\xd0\0" * 2000


def requests():
    yield "Basic b3BzZDpzZWNyZXQ="
    yield "bearer  token "
    yield "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4,*/*"
    yield ";q=,=,;;version=\"1.0.0\";q=1e309;q=NaN"


def manifests():
    def document(key):
        return {"key": key, "size": 100, "sha256": HASH}

    def thing(key):
        return {**document(key), "header": {"size": 50, "sha256": HASH}}

    def stream(name, key):
        return {"name": name, "plain_size": 1000, "objects": [thing(key)], "seconds": 1.5}

    locale = dict(encoding="UTF8", collate="C", ctype="C", provider="libc", locale=None, icu_rules=None, monetary="C")
    database = dict(
        name="app", locale=locale, snapshot_lsn="0/1", snapshot_time="2026-11-21T03:00:00Z",
        extensions=[{"name": "plpgsql", "version": "1.0"}], excluded=["public.sessions"],
        streams=[stream("schema", "app/schema.pgdump.zst.age"), stream("data-rest", "app/data-rest.pgdump.zst.age")],
        proof_object=stream("proof", "app/proof.json.zst.age"), proof="complete", tables=3, rows=40, bytes=900,
    )
    yield json.dumps(dict(
        format=2, site="example", job="db", id=ID, started="2026-11-21T03:00:00Z", finished="2026-11-21T03:01:00Z",
        previous=None, opsd_version="0.1.0", server=dict(version_num=170011, version="17.11", in_recovery=False),
        pg_dump_version="17.11", recipients=["age1x"], globals=stream("globals", "globals.sql.zst.age"),
        databases=[database], restore_md=document("RESTORE.md"), warnings=["a warning"],
    ), indent=2)
    yield json.dumps(dict(
        format=1, site="example", job="db", id=ID, manifest_sha256=HASH, verdict="proven",
        started="2026-11-21T03:00:00Z", finished="2026-11-21T03:01:00Z", seconds={"check": 0.5, "data": 2.0},
        databases=[dict(name="app", tables_total=3, tables_proven=3, rows=40, differences=[])],
        warnings=[], server_version="17.11", opsd_version="0.1.0",
    ))
    fingerprint = dict(rows=3, bytes=30, sum="f" * 32)
    yield json.dumps(dict(
        format=2, secret="A" * 256, encoding="UTF8",
        tables=[dict(schema="public", name="t", copy="COPY public.t (a) FROM stdin;", entries=1, fingerprint=fingerprint)],
        large_objects=fingerprint, sequences=[dict(schema="public", name="s", last_value=-5, is_called=True)],
        settings=[dict(role=None, setting="timezone=UTC")], owner="app", acl=None, comment=None,
        connection_limit=-1, excluded=[],
    ))


def scripts():
    yield (
        'CREATE ROLE app;\nALTER ROLE app WITH SUPERUSER INHERIT LOGIN PASSWORD \'SCRAM-SHA-256$x\';\n'
        'CREATE ROLE "odd "" name";\nALTER ROLE "odd "" name" WITH NOSUPERUSER;\n'
        'GRANT app TO "odd "" name" WITH ADMIN OPTION GRANTED BY app;\n'
        "COMMENT ON ROLE app IS E'a\\\\''; -- comment\n/* block; */\n"
    )
    yield (
        "\\restrict x\nSET client_encoding = 'UTF8';\nCREATE ROLE a;\n"
        "ALTER ROLE a WITH NOINHERIT CREATEROLE CREATEDB REPLICATION BYPASSRLS CONNECTION LIMIT 3 VALID UNTIL 'infinity';\n"
        "ALTER ROLE a SET search_path TO '$user', 'x y';\nALTER ROLE a SET \"my.x\" TO E'\\\\ SUPERUSER';\n"
        "CREATE TABLESPACE t OWNER a LOCATION '/t';\nGRANT ALL ON TABLESPACE t TO a;\nGRANT SET ON PARAMETER x TO a;\n"
        "GRANT a TO b WITH ADMIN OPTION, INHERIT TRUE, SET FALSE GRANTED BY c;\nDO $x$ ; $x$;\n\\unrestrict x\n"
    )
    yield 'COPY public."o""dd.Name" (a, "b c") FROM stdin;\n'
    yield "COPY public.t;COPY(SELECT/**/1)TO/**/PROGRAM'x';-- (a) FROM stdin;\n"


def names():
    yield from ("shop", "it's", "a\n```\n\n```sh\ntouch owned\n```\n", "$(id) `id` \\0101 %s", "\x1b[2J\u202e\u00e9", "")


def configurations():
    starter = (HERE.parent / "src/cli/config/starter.toml").read_text()
    yield starter
    yield starter.replace("#", "").replace("CHANGE-ME", "example")
    yield """site = "x"
[repository]
url = "file:///r"
[encryption]
recipients = ["age1qyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqs3290gq"]
[postgres.main]
url = "postgres://u:${SECRET}@h:5432,[::1]/db?sslmode=require&connect_timeout=5"
[backup.db]
source = { postgres = "main", databases = ["a", "b"] }
part_size = "8MiB"
"""
    yield "postgres://user:p%40ss@host:5432,other:1/db?options=-c%20work_mem%3D1MB&password=x"
    yield "host='a b' port=5432 user=u password='it\\'s' dbname=db sslmode=verify-full"
    yield from ("8MiB", "24h", "1.5 GB", "7d12h", "18446744073709551615", "service=nothing")


def keys():
    yield "age1qyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqs3290gq"
    yield "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN comment"
    yield "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
    yield (
        "untrusted comment: signature\n"
        "RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\n"
        "trusted comment: timestamp:1555779966\tfile:test\n"
        "QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==\n\0test"
    )


def headers():
    """Age headers as age and others write them, whole and not, and what costs a parser most."""
    stanza = "-> X25519 CJM36AHmTbdHSuOQL+NESqyVQE75f2e610iRdLPEN20\nC3ZAeY64NXS4QFrksLm3EGz+uPRyI0eQsWw7LWbbYig\n"
    ssh = "-> ssh-ed25519 BjH7FA RO+wV4kbbl4NtSmp56lQcfRdRp3dEFpdQmWkaoiw6lY\n51eEu5Oo2JYAG7OU4oamH03FDRP18/GnzeCrY7Z+sa8\n"
    long = "-> ssh-rsa mhir0Q\n" + ("A" * 64 + "\n") * 10 + "AAAA\n"
    grease = "-> x-grease a b c\n\n"
    mac = "--- fgMiVLJHMlg9fW7CVG/hPS5EAU4Zeg19LyCP7SoH5nA\n"
    for body in (stanza, ssh, long, stanza + grease, stanza + ssh + long + grease, grease * 40, "", "-> a\n" + "A\n" * 400):
        whole = ("age-encryption.org/v1\n" + body + mac).encode() + bytes(range(16))
        yield whole
        yield whole + b"a chunk"
        yield whole[:-3]
    yield b"age-encryption.org/v2\nsomething\n" + bytes(16)


def main():
    root = pathlib.Path(sys.argv[1])
    for target, seeds in dict(archive=archives, rows=tables, manifest=manifests, globals=scripts, quoting=names, config=configurations, keys=keys, header=headers, mqtt=packets, exporter=requests).items():
        directory = root / target
        directory.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            content = seed if isinstance(seed, bytes) else seed.encode()
            (directory / f"seed-{number:02}").write_bytes(content)


if __name__ == "__main__":
    main()
