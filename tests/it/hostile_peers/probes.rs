//! What else opsd talks to: sites over HTTP, certificates, brokers, a Prometheus; and who talks to the
//! exporter.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::exporter::Exporter;
use crate::support::hostile::{MEMORY, drip, measured, read_to, repeat, resident, server};
use crate::support::opsd::Opsd;

const TIME: Duration = Duration::from_secs(40);

fn site(monitor: &str) -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.more = format!("[monitor.it]\n{monitor}\ninterval = \"15s\"\ntimeout = \"5s\"\n");
    opsd
}

fn expect_bounded(what: &str, opsd: &Opsd) {
    let run = measured(opsd.command(&["check", "it"]), TIME).expect_small(what, TIME);
    // It is critical for what the peer did; a configuration with a mistake in it would be unknown.
    assert_eq!(run.code, Some(2), "{run}");
}

#[test]
fn pages_heads_and_drops_without_end_are_bounded() {
    for kind in ["body", "head", "drip", "json", "deep"] {
        let port = server(move |mut stream| {
            read_to(&mut stream, b"\r\n\r\n")?;
            if kind == "drip" {
                return drip(&mut stream, b"HTTP/1.1 200 OK\r\n", Duration::from_millis(50));
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")?;
            if kind == "head" {
                return repeat(&mut stream, b"x-more: and more\r\n");
            }
            stream.write_all(b"\r\n[")?;
            match kind {
                "json" => stream.write_all(&b"[],".repeat((1 << 20) / 3 - 10))?,
                "deep" => stream.write_all(&b"[".repeat((1 << 20) - 10))?,
                _ => repeat(&mut stream, b"x")?,
            }
            stream.write_all(b"[]]")
        });
        let url = format!("http://127.0.0.1:{port}/");
        let opsd = site(&format!("http = {{ url = \"{url}\", expect_json = {{ \"/0\" = \"x\" }} }}"));
        expect_bounded(&format!("HTTP {kind}"), &opsd);
    }
}

#[test]
fn handshakes_without_end_are_bounded() {
    for kind in ["noise", "messages", "drip"] {
        let port = server(move |mut stream| {
            let _ = stream.read(&mut [0; 4096])?;
            match kind {
                "noise" => repeat(&mut stream, b"x"),
                "messages" => {
                    let record =
                        [&[22, 3, 3, 0x40, 0][..], &[11, 0xff, 0xff, 0xff], &[0; 0x4000 - 4]].concat();
                    repeat(&mut stream, &record)
                }
                _ => drip(&mut stream, &[22, 3, 3, 0x40, 0], Duration::from_millis(50)),
            }
        });
        let opsd = site(&format!("tls = {{ address = \"127.0.0.1:{port}\" }}"));
        expect_bounded(&format!("TLS {kind}"), &opsd);
    }
}

#[test]
fn packets_without_end_are_bounded() {
    // Pings' answers by the million, messages that nobody asked for, and one that never ends.
    let pieces: [(&[u8], &[u8]); 4] = [
        (b"\x20\x02\0\0", b"\xb0\0"),
        (b"\x20\x02\0\0", b"\x30\x08\0\x06$SYS/xxx"),
        (b"\x20\x02\0\0\x30\xff\xff\x7f", b"x"),
        (b"\x30\xff\xff\x03", b"x"),
    ];
    for (beginning, piece) in pieces {
        let port = server(move |mut stream| {
            let _ = stream.read(&mut [0; 4096])?;
            stream.write_all(beginning)?;
            repeat(&mut stream, piece)
        });
        let opsd = site(&format!("mqtt = {{ url = \"mqtt://127.0.0.1:{port}\", sys = true }}"));
        expect_bounded(&format!("MQTT {beginning:?}"), &opsd);
    }
}

#[test]
fn a_prometheus_without_end_is_refused() {
    for piece in ["x", "[],", "{\"a\":\"b\"},"] {
        let port = server(move |mut stream| {
            read_to(&mut stream, b"\r\n\r\n")?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"data\":[")?;
            repeat(&mut stream, piece.as_bytes())
        });
        let opsd = Opsd::without_server();
        let rules = opsd.path("rules.yml");
        std::fs::write(&rules, "groups:\n- name: a\n  rules:\n  - alert: A\n    expr: up == 0\n").unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let args = ["alerts", "doctor", rules.to_str().unwrap(), "--prometheus", &url];
        let run = measured(opsd.command(&args), TIME).expect_small("alerts doctor", TIME);
        assert_eq!(run.code, Some(1), "{run}");
        assert!(run.stderr.contains("answers more than 4 MiB"), "{run}");
    }
}

#[test]
fn requests_without_end_take_little_of_the_exporter() {
    let mut opsd = site("tcp = { address = \"127.0.0.1:1\" }");
    let exporter = Exporter::start(&mut opsd, "header_timeout = \"2s\"");
    let started = Instant::now();
    let beginnings: [&[u8]; 3] =
        [b"GET /", b"GET /metrics HTTP/1.1\r\nAccept: ", b"GET /metrics HTTP/1.1\r\n"];
    let clients: Vec<_> = (0..60)
        .map(|n| {
            let address = exporter.address.clone();
            std::thread::spawn(move || {
                let beginning = beginnings[n % beginnings.len()];
                let mut stream = TcpStream::connect(address)?;
                stream.write_all(beginning)?;
                match n {
                    0..3 => drip(&mut stream, b"x", Duration::from_millis(20)),
                    _ => repeat(&mut stream, if n % 3 == 2 { b"X: y\r\n" } else { b"a,b;q=1," }),
                }
            })
        })
        .collect();
    // The exporter hangs up on each of them.
    for client in clients {
        assert!(client.join().unwrap().is_err());
    }
    assert!(started.elapsed() < TIME);
    let peak = resident(exporter.pid().as_raw_nonzero().get().cast_unsigned()).unwrap();
    eprintln!("exporter: {} MiB", peak >> 10);
    assert!(peak <= MEMORY, "{} MiB", peak >> 10);
    assert_eq!(exporter.get("/live", &[]).0, 200);
}
