//! What somebody puts in the place of a signed set's objects who can write to the bucket and holds no
//! key: nothing of it runs, is loaded, or is printed. Anybody can encrypt to a public recipient.

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;

use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{Options, SUPERUSER, Server, default_major, default_server, unique};
use crate::support::sets::{self, back_up, directory, manifest, result};

/// What every refusal says, beside the object's name.
const CHANGED: &str = "was changed since the backup wrote it";

/// Fills a database: a large table and a small one, neither of which compresses well or fits into a pipe.
fn fill(server: &Server, database: &str) {
    server.psql(
        database,
        "CREATE TABLE accounts (id integer, note text);
         INSERT INTO accounts VALUES (1, repeat('x', 2000));
         INSERT INTO accounts SELECT i, md5(i::text) || md5((-i)::text) FROM generate_series(2, 60000) i;
         CREATE TABLE notes (id integer, note text);
         INSERT INTO notes VALUES (1, repeat('x', 2000));
         INSERT INTO notes SELECT i, md5(i::text) FROM generate_series(2, 50000) i",
    );
}

/// A site whose database has a stream `data-1` for `accounts`, and where what is run leaves a mark.
struct Site {
    opsd: Opsd,
    database: String,
    loot: PathBuf,
    id: String,
}

impl Site {
    fn new(server: &Server, database: String, part_size: Option<&str>) -> Site {
        let mut opsd = Opsd::new(server, &[&database]);
        opsd.job.set("large_table", quoted("4MiB"));
        if let Some(size) = part_size {
            opsd.job.set("part_size", quoted(size));
        }
        let loot = opsd.path("loot");
        std::fs::create_dir(&loot).unwrap();
        std::fs::set_permissions(&loot, PermissionsExt::from_mode(0o777)).unwrap();
        let id = back_up(&opsd);
        Site { opsd, database, loot, id }
    }

    /// A stream as the manifest has it.
    fn stream(&self, name: &str) -> Value {
        let manifest = manifest(&self.opsd, &self.id);
        let database = &manifest["databases"][0];
        match name {
            "globals" => manifest["globals"].clone(),
            "proof" => database["proof_object"].clone(),
            _ => {
                let mut streams = database["streams"].as_array().unwrap().iter();
                streams.find(|s| s["name"] == name).unwrap_or_else(|| panic!("stream {name}")).clone()
            }
        }
    }

    fn key(&self, name: &str, object: usize) -> String {
        self.stream(name)["objects"][object]["key"].as_str().unwrap().to_owned()
    }

    fn file(&self, key: &str) -> PathBuf {
        directory(&self.opsd, &self.id).join(key)
    }

    /// What `backups cat` writes of a stream.
    fn cat(&self, name: &str) -> std::process::Output {
        self.opsd.command(&["backups", "cat", &self.id, &self.database, name]).output().unwrap()
    }

    fn plaintext(&self, name: &str) -> Vec<u8> {
        let output = self.cat(name);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Where code of a stranger's would leave a mark.
    fn mark(&self, name: &str) -> PathBuf {
        self.loot.join(name)
    }

    /// Holds every command that reads the stream to it: nothing of what lies under `key` is run or
    /// printed, the object is named, and the exit code is 3.
    fn assert_refused(&self, server: &Server, name: &str, key: &str) {
        let mark = self.mark(name);
        let is_clean = |what: &str, run: &dyn std::fmt::Display| {
            assert!(!mark.exists(), "{what}: code of a stranger's ran out of {key}: {run}");
        };
        let named = format!("object {key} {CHANGED}");
        let verified = self.opsd.run(&["restore", "--verify", "--json"]);
        is_clean("restore --verify", &verified);
        let verified = verified.expect_failure(3, &[&named]);
        assert_eq!(result(&verified)["verdict"], "differs", "{verified}");

        // Of the proof a restore to a server reads the settings alone, at its end.
        let target = unique("forged");
        let to = server.socket_url(SUPERUSER, &target);
        let restored = self.opsd.run(&["restore", "db", "--to", &to, "--create", "--backup", &self.id]);
        is_clean("restore --to", &restored);
        restored.expect_failure(3, &[&named]);
        if name != "proof" {
            assert!(!server.databases().contains(&target), "{name}: a half-restored database was left");
        }
        server.try_psql("postgres", &format!("DROP DATABASE IF EXISTS {target}")).unwrap();

        let cat = self.cat(name);
        let said = String::from_utf8_lossy(&cat.stderr);
        assert_eq!(cat.status.code(), Some(3), "{said}");
        assert!(said.contains(&named), "{said}");
        assert!(cat.stdout.is_empty(), "{name}: {} bytes of a stranger's were printed", cat.stdout.len());
    }
}

/// A file in memory whose size can be asked for while somebody writes to it.
#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().write(buf)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An object of a stranger's: encrypted to the public recipient, and as long as the one in whose place it
/// is put, which a zstd frame that is skipped fills up.
fn of_a_stranger(opsd: &Opsd, content: &[u8], size: usize) -> Vec<u8> {
    /// Bytes that age encrypts at once, and what that adds.
    const CHUNK: usize = 64 << 10;
    const TAG: usize = 16;
    const SKIPPED: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
    let recipient: age::x25519::Recipient = opsd.recipient.parse().unwrap();
    let mut inside = zstd::bulk::compress(content, 3).unwrap();
    // The length of age's header varies at random, and some leave no room.
    for _ in 0..10_000 {
        let file = Shared::default();
        let to = [&recipient as &dyn age::Recipient];
        let encryptor = age::Encryptor::with_recipients(to.into_iter()).unwrap();
        let mut age = encryptor.wrap_output(file.clone()).unwrap();
        let header = file.0.borrow().len();
        let Some(payload) = size.checked_sub(header) else { continue };
        let length = payload - TAG * payload.div_ceil(CHUNK + TAG);
        let Some(padding) = length.checked_sub(inside.len() + 8) else { continue };
        inside.extend(SKIPPED);
        inside.extend(u32::try_from(padding).unwrap().to_le_bytes());
        inside.resize(length, 0);
        age.write_all(&inside).unwrap();
        age.finish().unwrap();
        let file = file.0.take();
        assert_eq!(file.len(), size);
        return file;
    }
    panic!("no object of {size} bytes came of it");
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    let found: Vec<usize> =
        (0..bytes.len() - what.len()).filter(|at| bytes[*at..].starts_with(what)).collect();
    assert_eq!(found.len(), 1, "{:?} is there once", String::from_utf8_lossy(what));
    found[0]
}

/// A string as pg_dump's archive has it.
fn counted(text: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    out.extend(text);
    out
}

/// Puts one string of an archive in the place of another.
fn replace(archive: &mut Vec<u8>, old: &str, new: &str) {
    let old = counted(old.as_bytes());
    let at = find(archive, &old);
    archive.splice(at..at + old.len(), counted(new.as_bytes()));
}

fn program(mark: &Path) -> String {
    format!("touch {}", mark.display())
}

fn copy_of(table: &str) -> String {
    format!("COPY public.{table} (id, note) FROM stdin;\n")
}

/// Takes as much from the first row of a table as was added elsewhere, and leaves room for padding.
fn as_long_as(size: usize, archive: &mut Vec<u8>) {
    let row = |width: usize| format!("1\t{}\n", "x".repeat(width));
    let more = archive.len() - size;
    let (old, new) = (counted(row(2000).as_bytes()), counted(row(2000 - more).as_bytes()));
    let at = (0..archive.len()).find(|at| archive[*at..].starts_with(&old)).expect("a first row");
    archive.splice(at..at + old.len(), new);
    assert_eq!(archive.len(), size);
    // Rows of a stranger's own choice compress better.
    archive[size / 2..].iter_mut().filter(|b| b.is_ascii_hexdigit()).for_each(|b| *b = b'1');
}

/// An archive in which a program is run before a table is loaded; as long as before.
fn with_a_program(mut archive: Vec<u8>, mark: &Path) -> Vec<u8> {
    let size = archive.len();
    let statement = format!("COPY (SELECT 1) TO PROGRAM '{}'; {}", program(mark), copy_of("notes"));
    replace(&mut archive, &copy_of("notes"), &statement);
    as_long_as(size, &mut archive);
    archive
}

/// A table's own archive whose name goes on with a statement; as long as before.
fn with_a_statement_for_a_name(mut archive: Vec<u8>, mark: &Path) -> Vec<u8> {
    let size = archive.len();
    let command = program(mark).replace(' ', "${IFS}");
    let name = format!("accounts;COPY(SELECT/**/1)TO/**/PROGRAM'{command}';--");
    replace(&mut archive, "accounts", &name);
    replace(&mut archive, &copy_of("accounts"), &copy_of(&name));
    as_long_as(size, &mut archive);
    archive
}

/// Puts a stranger's object in the place of a stream's first one.
fn put_in_place(site: &Site, name: &str, content: &[u8]) -> (PathBuf, Vec<u8>) {
    assert_eq!(content.len() as u64, site.stream(name)["plain_size"].as_u64().unwrap(), "{name}");
    let file = site.file(&site.key(name, 0));
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, of_a_stranger(&site.opsd, content, good.len())).unwrap();
    (file, good)
}

/// A site on the shared server.
fn site() -> (&'static Server, Site) {
    let server = default_server();
    let database = server.fresh_database("forgery");
    fill(server, &database);
    (server, Site::new(server, database, None))
}

/// Puts a stranger's archive in the place of a stream's; afterwards the set is whole again, and proven.
fn assert_not_run(server: &Server, site: &Site, name: &str, content: &[u8]) {
    let (file, good) = put_in_place(site, name, content);
    site.assert_refused(server, name, &site.key(name, 0));
    std::fs::write(file, good).unwrap();
    site.opsd.ok(&["restore", "--verify"]);
}

#[test]
fn an_archive_of_a_strangers_is_not_run() {
    let (server, site) = site();
    let content = with_a_program(site.plaintext("data-rest"), &site.mark("data-rest"));
    assert_not_run(server, &site, "data-rest", &content);
}

#[test]
fn a_table_of_a_strangers_is_not_loaded_and_its_name_is_no_statement() {
    let (server, site) = site();
    let content = with_a_statement_for_a_name(site.plaintext("data-1"), &site.mark("data-1"));
    assert_not_run(server, &site, "data-1", &content);
}

#[test]
fn an_archive_of_everything_of_a_strangers_is_not_run() {
    let settings = [("max_locks_per_transaction", "10"), ("max_connections", "20")];
    let server = Server::start(default_major(), &Options { settings: &settings, ..Default::default() });
    server.create_database("app");
    fixtures::many_tables(&server, "app", 90);
    fill(&server, "app");
    let site = Site::new(&server, "app".into(), None);
    let content = with_a_program(site.plaintext("full"), &site.mark("full"));
    assert_not_run(&server, &site, "full", &content);
}

/// These are read whole before anything is done with them.
#[test]
fn definitions_roles_and_proofs_of_a_strangers_are_not_used() {
    let (server, site) = site();
    for name in ["schema", "globals", "proof"] {
        let mut content = site.plaintext(name);
        let last = content.len() - 1;
        content[last] = b' ';
        assert_not_run(server, &site, name, &content);
    }
}

/// `.001` and so on: in the middle of a stream, which zstd alone would complain of.
#[test]
fn a_segment_of_a_strangers_or_of_another_place_is_named() {
    let server = default_server();
    let database = server.fresh_database("forgery");
    fill(server, &database);
    // Of so many parts an object has at most.
    let site = Site::new(server, database, Some("2KiB"));
    let whole = site.plaintext("data-1");
    let keys: Vec<String> = (0..3).map(|at| site.key("data-1", at)).collect();
    assert!(keys[1].ends_with(".age.001"), "{keys:?}");
    let files: Vec<PathBuf> = keys.iter().map(|key| site.file(key)).collect();
    let good: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let refused = |what: &str, key: &str| {
        let named = format!("object {key} {CHANGED}");
        let run = site.opsd.run(&["restore", "--verify", "--json"]).expect_failure(3, &[&named]);
        assert_eq!(result(&run)["verdict"], "differs", "{what}: {run}");
        let cat = site.cat("data-1");
        let said = String::from_utf8_lossy(&cat.stderr);
        assert!(cat.status.code() == Some(3) && said.contains(&named), "{what}: {said}");
        assert!(whole.starts_with(&cat.stdout), "{what}: something else was printed");
        assert!(cat.stdout.len() < whole.len(), "{what}");
    };
    let theirs = of_a_stranger(&site.opsd, &vec![b'1'; 100_000], good[1].len());
    std::fs::write(&files[1], &theirs).unwrap();
    refused("a stranger's", &keys[1]);
    let as_long = |bytes: &[u8], size: usize| {
        let mut bytes = bytes.to_vec();
        bytes.resize(size, 0);
        bytes
    };
    std::fs::write(&files[0], as_long(&good[1], good[0].len())).unwrap();
    std::fs::write(&files[1], as_long(&good[0], good[1].len())).unwrap();
    refused("swapped", &keys[0]);
    std::fs::write(&files[0], &good[0]).unwrap();
    // A bit late in the first: what comes before it is the backup's own.
    let mut flipped = good[0].clone();
    let at = flipped.len() - 100_000;
    flipped[at] ^= 1;
    std::fs::write(&files[1], &good[1]).unwrap();
    std::fs::write(&files[0], flipped).unwrap();
    refused("a flipped bit", &keys[0]);
    std::fs::write(&files[0], &good[0]).unwrap();
    site.opsd.ok(&["restore", "--verify"]);
}

/// Two objects of a set change places: each is the backup's own, and encrypted to the same key.
#[test]
fn objects_that_changed_places_are_named() {
    let (server, site) = site();
    let (rest, proof) = (site.key("data-rest", 0), site.key("proof", 0));
    for (name, key, other) in [("data-rest", &rest, &proof), ("proof", &proof, &rest)] {
        let file = site.file(key);
        let good = std::fs::read(&file).unwrap();
        let mut bytes = std::fs::read(site.file(other)).unwrap();
        bytes.resize(good.len(), 0);
        std::fs::write(&file, bytes).unwrap();
        site.assert_refused(server, name, key);
        std::fs::write(&file, good).unwrap();
    }
}

/// Who holds an identity knows the key of each object. What he changed is found at its end, and is the
/// reason that is told: not what PostgreSQL made of the rows, and nothing is tried again.
#[test]
fn a_changed_object_is_the_reason_whatever_the_server_said_first() {
    let (server, site) = site();
    for name in ["data-rest", "data-1"] {
        let mut content = site.plaintext(name);
        // A statement that fails at once, with megabytes behind it.
        let at = find(&content, b"(id, note) FROM stdin");
        content[at..][..10].copy_from_slice(b"(id, nope)");
        let key = site.key(name, 0);
        let file = site.file(&key);
        let (good, before) = (std::fs::read(&file).unwrap(), manifest(&site.opsd, &site.id));
        let theirs = of_a_stranger_of_any_size(&site.opsd, &content);
        // Their object has the header that is pinned and the size that is stated, and another hash.
        sets::forge(&site.opsd, &site.id, |manifest| {
            let streams = manifest["databases"][0]["streams"].as_array_mut().unwrap();
            let stream = streams.iter_mut().find(|s| s["name"] == name).unwrap();
            let end = opsd::set::seal::header::end(&theirs).unwrap().unwrap();
            let pin = opsd::set::seal::header::pin(&theirs[..end]);
            stream["objects"][0]["header"] = serde_json::to_value(pin).unwrap();
            stream["objects"][0]["size"] = theirs.len().into();
        });
        std::fs::write(&file, &theirs).unwrap();
        let named = format!("object {key} {CHANGED}");
        let run = site.opsd.run(&["-v", "restore", "--verify", "--json"]).expect_failure(3, &[&named]);
        assert_eq!(result(&run)["verdict"], "differs", "{run}");
        assert!(!run.stderr.contains("trying once more"), "{run}");
        // The server did complain first; a log says so.
        assert!(run.stderr.contains("does not exist"), "{run}");
        let target = unique("forged");
        let to = server.socket_url(SUPERUSER, &target);
        let run = site
            .opsd
            .run(&["restore", "db", "--to", &to, "--create", "--backup", &site.id])
            .expect_failure(3, &[&named]);
        assert!(!server.databases().contains(&target), "{run}");
        std::fs::write(&file, good).unwrap();
        sets::forge(&site.opsd, &site.id, |manifest| *manifest = before);
    }
    site.opsd.ok(&["restore", "--verify"]);
}

fn of_a_stranger_of_any_size(opsd: &Opsd, content: &[u8]) -> Vec<u8> {
    let recipient: age::x25519::Recipient = opsd.recipient.parse().unwrap();
    age::encrypt(&recipient, &zstd::bulk::compress(content, 3).unwrap()).unwrap()
}
