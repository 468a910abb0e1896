//! The databases that are measured: made up, the same in every run, generated here.
//!
//! Rows are written as COPY text into psql by a small deterministic generator, because a server
//! takes minutes to make a gigabyte of prose out of SQL. Nothing is downloaded.

use std::fmt::Write as _;
use std::io::{BufWriter, Write};
use std::process::Stdio;

use crate::support::postgres::Server;

/// Words of the vocabulary; a few are frequent and most are rare, as in prose.
const WORDS: usize = 4_000;

/// A deterministic generator (SplitMix64: Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// In `0..1`, small values far more often.
    fn skewed(&mut self) -> f64 {
        let u = self.next() as f64 / u64::MAX as f64;
        u * u * u
    }
}

/// Made-up words of two to four syllables.
fn vocabulary() -> Vec<String> {
    const SYLLABLES: [&str; 20] = [
        "ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va", "we",
        "xi", "yo", "zu",
    ];
    let mut random = Random(1);
    (0..WORDS)
        .map(|_| (0..2 + random.below(3)).map(|_| SYLLABLES[random.below(SYLLABLES.len())]).collect())
        .collect()
}

struct Generator {
    random: Random,
    words: Vec<String>,
}

impl Generator {
    fn prose(&mut self, line: &mut String, words: usize) {
        for i in 0..words {
            if i > 0 {
                line.push(' ');
            }
            let index = (self.random.skewed() * WORDS as f64) as usize;
            line.push_str(&self.words[index.min(WORDS - 1)]);
        }
    }

    /// A time between 2020 and 2026.
    fn time(&mut self, line: &mut String) {
        let (month, day, second) =
            (self.random.below(72), 1 + self.random.below(28), self.random.below(86_400));
        let _ = write!(
            line,
            "{}-{:02}-{day:02} {:02}:{:02}:{:02}.{:06}+00",
            2020 + month / 12,
            1 + month % 12,
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.random.below(1_000_000)
        );
    }

    /// Digits that no compressor gets far with.
    fn noise(&mut self, line: &mut String, bytes: usize) {
        const DIGITS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";
        let mut left = bytes;
        while left > 0 {
            let mut bits = self.random.next();
            for _ in 0..left.min(10) {
                line.push(char::from(DIGITS[(bits & 63) as usize]));
                bits >>= 6;
            }
            left -= left.min(10);
        }
    }

    fn hexadecimal(&mut self, line: &mut String, bytes: usize) {
        for _ in 0..bytes.div_ceil(8) {
            let _ = write!(line, "{:016x}", self.random.next());
        }
        line.truncate(line.len() - (bytes.div_ceil(8) * 8 - bytes) * 2);
    }
}

/// Writes rows into a table through psql.
fn copy(server: &Server, database: &str, table: &str, mut row: impl FnMut(u64, &mut String), rows: u64) {
    let mut child = server
        .client("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-c"])
        .arg(format!("COPY {table} FROM STDIN"))
        .stdin(Stdio::piped())
        .spawn()
        .expect("start psql");
    let mut stdin = BufWriter::with_capacity(1 << 20, child.stdin.take().expect("psql's stdin"));
    let mut line = String::new();
    for number in 1..=rows {
        line.clear();
        row(number, &mut line);
        line.push('\n');
        stdin.write_all(line.as_bytes()).expect("psql reads");
    }
    drop(stdin);
    assert!(child.wait().expect("wait for psql").success(), "COPY {table} failed");
}

/// A social network's database: `scale` 1 is about 1.1 GB of heap in four tables, of which `statuses`
/// is two thirds.
pub fn web(server: &Server, database: &str, scale: u64) {
    server.psql(
        database,
        "CREATE TABLE accounts (id bigint NOT NULL, username text NOT NULL, domain text, display_name text NOT NULL,
             note text NOT NULL, fields jsonb, public_key text NOT NULL, created_at timestamptz NOT NULL);
         CREATE TABLE statuses (id bigint NOT NULL, account_id bigint NOT NULL, in_reply_to_id bigint, uri text NOT NULL,
             text text NOT NULL, spoiler_text text NOT NULL, meta jsonb, language text, visibility smallint NOT NULL,
             created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL);
         CREATE TABLE follows (id bigint NOT NULL, account_id bigint NOT NULL, target_account_id bigint NOT NULL,
             created_at timestamptz NOT NULL);
         CREATE TABLE media (id bigint NOT NULL, status_id bigint NOT NULL, account_id bigint NOT NULL, file_name text NOT NULL,
             blurhash text NOT NULL, meta jsonb, size integer NOT NULL, created_at timestamptz NOT NULL);",
    );
    let mut g = Generator { random: Random(42), words: vocabulary() };
    let (accounts, statuses) = (200_000 * scale, 1_300_000 * scale);
    copy(
        server,
        database,
        "accounts",
        |id, line| {
            let _ = write!(line, "{id}\t{}{id}\t", g.words[id as usize % WORDS]);
            if id % 5 == 0 {
                line.push_str("\\N")
            } else {
                let _ = write!(line, "node{}.example", id % 1_000);
            }
            line.push('\t');
            g.prose(line, 2);
            line.push('\t');
            g.prose(line, 25);
            line.push_str("\t[{\"name\": \"");
            g.prose(line, 1);
            line.push_str("\", \"value\": \"");
            g.prose(line, 3);
            line.push_str("\"}]\t");
            g.noise(line, 180);
            line.push('\t');
            g.time(line);
        },
        accounts,
    );
    copy(
        server,
        database,
        "statuses",
        |id, line| {
            let account = 1 + (g.random.skewed() * accounts as f64) as u64 % accounts;
            let _ = write!(line, "{id}\t{account}\t");
            if id > 10 && id % 4 == 0 {
                let _ = write!(line, "{}", 1 + g.random.next() % (id - 1));
            } else {
                line.push_str("\\N")
            }
            let _ = write!(line, "\thttps://node{}.example/users/{account}/statuses/{id}\t", id % 1_000);
            let words = 15 + g.random.below(50);
            g.prose(line, words);
            line.push('\t');
            if id % 20 == 0 {
                g.prose(line, 3)
            }
            let _ = write!(line, "\t{{\"tags\": [\"");
            g.prose(line, 1);
            let _ = write!(
                line,
                "\"], \"replies\": {}, \"reblogs\": {}}}\t",
                g.random.below(40),
                g.random.below(400)
            );
            line.push_str(["en", "de", "fr", "ja", "\\N"][g.random.below(5)]);
            let _ = write!(line, "\t{}\t", g.random.below(4));
            g.time(line);
            line.push('\t');
            g.time(line);
        },
        statuses,
    );
    copy(
        server,
        database,
        "follows",
        |id, line| {
            // Unique by construction: each pair of account and distance once.
            let account = 1 + (id - 1) % accounts;
            let target = 1 + (account + 7 + (id - 1) / accounts * 131) % accounts;
            let _ = write!(line, "{id}\t{account}\t{target}\t");
            g.time(line);
        },
        1_800_000 * scale,
    );
    copy(
        server,
        database,
        "media",
        |id, line| {
            let status = 1 + g.random.next() % statuses;
            let _ = write!(line, "{id}\t{status}\t{}\t", 1 + status % accounts);
            g.hexadecimal(line, 16);
            line.push_str(".webp\t");
            g.noise(line, 36);
            let (width, height) = (200 + g.random.below(3_000), 200 + g.random.below(3_000));
            let _ = write!(
                line,
                "\t{{\"original\": {{\"width\": {width}, \"height\": {height}, \"aspect\": {:.6}}}, \"description\": \"",
                width as f64 / height as f64
            );
            g.prose(line, 12);
            let _ = write!(line, "\"}}\t{}\t", g.random.below(4_000_000));
            g.time(line);
        },
        350_000 * scale,
    );
    server.psql(
        database,
        "ALTER TABLE accounts ADD PRIMARY KEY (id);
         ALTER TABLE statuses ADD PRIMARY KEY (id);
         ALTER TABLE follows ADD PRIMARY KEY (id);
         ALTER TABLE media ADD PRIMARY KEY (id);
         CREATE UNIQUE INDEX ON accounts (username, domain);
         CREATE INDEX ON accounts (lower(username));
         CREATE INDEX ON statuses (account_id, id DESC);
         CREATE UNIQUE INDEX ON statuses (uri);
         CREATE INDEX ON statuses (in_reply_to_id) WHERE in_reply_to_id IS NOT NULL;
         CREATE INDEX ON statuses (created_at);
         CREATE UNIQUE INDEX ON follows (account_id, target_account_id);
         CREATE INDEX ON follows (target_account_id);
         CREATE INDEX ON media (status_id);
         CREATE INDEX ON media (account_id, status_id);
         ALTER TABLE statuses ADD FOREIGN KEY (account_id) REFERENCES accounts, ADD FOREIGN KEY (in_reply_to_id) REFERENCES statuses;
         ALTER TABLE follows ADD FOREIGN KEY (account_id) REFERENCES accounts, ADD FOREIGN KEY (target_account_id) REFERENCES accounts;
         ALTER TABLE media ADD FOREIGN KEY (status_id) REFERENCES statuses, ADD FOREIGN KEY (account_id) REFERENCES accounts;
         VACUUM ANALYZE;",
    );
}

/// Ten thousand small tables in twenty schemas.
pub fn many(server: &Server, database: &str) {
    for schema in 0..20 {
        server.psql(
            database,
            &format!(
                "CREATE SCHEMA s{schema};
                 DO $$ BEGIN FOR t IN 0..499 LOOP
                     EXECUTE format('CREATE TABLE s{schema}.t%s (id integer PRIMARY KEY, name text, at timestamptz)', t);
                     EXECUTE format('INSERT INTO s{schema}.t%s SELECT i, md5(i::text), ''2026-01-01''::timestamptz + i * ''1 hour''::interval FROM generate_series(1, 20) i', t);
                 END LOOP; END $$;"
            ),
        );
    }
    server.psql(database, "VACUUM ANALYZE");
}

/// Large objects, each with a line of text; a thousand a transaction, because each takes a lock.
pub fn large_objects(server: &Server, database: &str, count: u64) {
    let batch = |n: u64| {
        format!(
            "SELECT count(lo_from_bytea(({n} * 1000 + i)::oid, convert_to('object ' || i, 'UTF8')))
               FROM generate_series(100001, 101000) i;\n"
        )
    };
    server.psql(database, &(0..count / 1_000).map(batch).collect::<String>());
    server.psql(database, "VACUUM ANALYZE");
}

/// Small tables, a thousand a transaction.
pub fn tables(server: &Server, database: &str, count: u64) {
    let batch = |n: u64| {
        format!(
            "DO $$ BEGIN FOR t IN {0}..{1} LOOP
                 EXECUTE format('CREATE TABLE t%s (id integer, name text)', t);
                 EXECUTE format('INSERT INTO t%s VALUES (%s, ''row'')', t, t);
             END LOOP; END $$;\n",
            n * 1_000,
            n * 1_000 + 999
        )
    };
    server.psql(database, &(0..count / 1_000).map(batch).collect::<String>());
}

/// A shop's database of about 1.05 GB of COPY text: `orders` has most of it and five indexes beside its key; two
/// other tables, and foreign keys.
pub fn indexed(server: &Server, database: &str) {
    server.psql(
        database,
        "CREATE TABLE customers (id bigint NOT NULL, email text NOT NULL, name text NOT NULL, created_at timestamptz NOT NULL);
         CREATE TABLE orders (id bigint NOT NULL, customer_id bigint NOT NULL, number text NOT NULL, state text NOT NULL,
             total numeric(12,2) NOT NULL, note text NOT NULL, tags jsonb NOT NULL, paid_at timestamptz, created_at timestamptz NOT NULL);
         CREATE TABLE items (id bigint NOT NULL, order_id bigint NOT NULL, sku text NOT NULL, quantity integer NOT NULL,
             price numeric(12,2) NOT NULL, description text NOT NULL);",
    );
    let mut g = Generator { random: Random(99), words: vocabulary() };
    let (customers, orders, items) = (400_000, 2_200_000, 2_200_000);
    copy(
        server,
        database,
        "customers",
        |id, line| {
            let _ = write!(line, "{id}\t{}{id}@node{}.example\t", g.words[id as usize % WORDS], id % 1_000);
            g.prose(line, 2);
            line.push('\t');
            g.time(line);
        },
        customers,
    );
    copy(
        server,
        database,
        "orders",
        |id, line| {
            let customer = 1 + (g.random.skewed() * customers as f64) as u64 % customers;
            let _ = write!(line, "{id}\t{customer}\t");
            g.hexadecimal(line, 8);
            let state = ["open", "paid", "sent", "done", "done", "done", "done", "void"][g.random.below(8)];
            let _ = write!(line, "{id}\t{state}\t{}.{:02}\t", g.random.below(5_000), g.random.below(100));
            let words = 15 + g.random.below(25);
            g.prose(line, words);
            line.push_str("\t[\"");
            g.prose(line, 1);
            line.push_str("\", \"");
            g.prose(line, 1);
            line.push_str("\"]\t");
            if state == "open" {
                line.push_str("\\N")
            } else {
                g.time(line)
            }
            line.push('\t');
            g.time(line);
        },
        orders,
    );
    copy(
        server,
        database,
        "items",
        |id, line| {
            let _ = write!(line, "{id}\t{}\tsku-", 1 + g.random.next() % orders);
            g.hexadecimal(line, 5);
            let _ = write!(
                line,
                "\t{}\t{}.{:02}\t",
                1 + g.random.below(9),
                g.random.below(500),
                g.random.below(100)
            );
            g.prose(line, 9);
        },
        items,
    );
    server.psql(
        database,
        "ALTER TABLE customers ADD PRIMARY KEY (id);
         ALTER TABLE orders ADD PRIMARY KEY (id);
         ALTER TABLE items ADD PRIMARY KEY (id);
         CREATE UNIQUE INDEX ON customers (lower(email));
         CREATE INDEX ON orders (customer_id, created_at DESC);
         CREATE UNIQUE INDEX ON orders (number);
         CREATE INDEX ON orders USING gin (tags);
         CREATE INDEX ON orders (created_at) WHERE state = 'open';
         CREATE INDEX ON orders (paid_at, total);
         CREATE INDEX ON items (order_id);
         CREATE INDEX ON items (sku);
         ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers;
         ALTER TABLE items ADD FOREIGN KEY (order_id) REFERENCES orders;
         VACUUM ANALYZE;",
    );
}

/// JSON, bytea and text from one byte to 50 MB a value, hardly compressible, some 600 MB.
pub fn wide(server: &Server, database: &str) {
    server.psql(
        database,
        "CREATE TABLE documents (id bigint PRIMARY KEY, kind text NOT NULL, body jsonb, blob bytea, note text);
         CREATE INDEX ON documents (kind);",
    );
    let mut g = Generator { random: Random(7), words: vocabulary() };
    // Sizes from one byte to 50 MB; the larger, the rarer, so that each magnitude weighs the same.
    const SIZES: [(usize, usize); 8] = [
        (1, 40_000),
        (100, 40_000),
        (1_000, 30_000),
        (10_000, 6_000),
        (100_000, 600),
        (1_000_000, 60),
        (10_000_000, 6),
        (50_000_000, 2),
    ];
    let mut sizes: Vec<usize> =
        SIZES.iter().flat_map(|(size, count)| std::iter::repeat_n(*size, *count)).collect();
    for i in (1..sizes.len()).rev() {
        sizes.swap(i, g.random.below(i + 1));
    }
    let rows = sizes.len() as u64;
    copy(
        server,
        database,
        "documents",
        |id, line| {
            let size = sizes[id as usize - 1];
            let kind = ["json", "bytea", "text"][(id % 3) as usize];
            let _ = write!(line, "{id}\t{kind}\t");
            match kind {
                "json" => {
                    line.push_str("{\"v\": \"");
                    g.noise(line, size);
                    line.push_str("\"}\t\\N\t\\N");
                }
                "bytea" => {
                    line.push_str("\\N\t\\\\x");
                    g.hexadecimal(line, size);
                    line.push_str("\t\\N");
                }
                _ => {
                    line.push_str("\\N\t\\N\t");
                    g.noise(line, size);
                }
            }
        },
        rows,
    );
    server.psql(database, "VACUUM ANALYZE");
}
