//! Who waits for work, by `CLIENT LIST`: workers that leave no other trace.
//!
//! It is a piece of its own: roles may lack the right, and a server with very many clients is not
//! asked, because the answer is as long as their list.

use redis::Value;

use super::super::redis::link::Link;
use super::super::{Failure, Reason};
use super::list::bytes;
use crate::error::Error;

/// A line is about 400 bytes.
const CLIENTS_MAX: i64 = 2_000;

/// A client: its name, database and last command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// `CLIENT SETNAME`; usually empty.
    pub name: String,
    /// Number of its database.
    pub database: u32,
    /// In lower case.
    pub command: String,
}

/// Clients of a server, replicas and subscribers aside. Outside, the connection's failure.
pub async fn list(link: &mut Link) -> Result<Result<Vec<Client>, Failure>, Failure> {
    let mut info = redis::cmd("INFO");
    info.arg("clients");
    let mut replies = link.ask(vec![info]).await?;
    let text = match replies.pop().unwrap_or(Ok(Value::Nil)).and_then(bytes) {
        Ok(text) => text.unwrap_or_default(),
        Err(failure) => return Ok(Err(failure)),
    };
    match connected(&String::from_utf8_lossy(&text)) {
        Some(number) if number <= CLIENTS_MAX => {}
        _ => {
            let error = Error::new(format!("more than {CLIENTS_MAX} clients, which are too many to list"));
            return Ok(Err(Failure::new(Reason::Refused, error)));
        }
    }
    let mut list = redis::cmd("CLIENT");
    list.arg("LIST").arg("TYPE").arg("normal");
    let reply = link.ask(vec![list]).await?.pop().unwrap_or(Ok(Value::Nil));
    Ok(reply.and_then(bytes).map(|text| parse(&String::from_utf8_lossy(&text.unwrap_or_default()))))
}

fn connected(info: &str) -> Option<i64> {
    info.lines().find_map(|line| line.strip_prefix("connected_clients:")?.trim().parse().ok())
}

/// Lines of `key=value` with blanks between; names have none.
fn parse(text: &str) -> Vec<Client> {
    let field = |line: &str, key: &str| {
        line.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
    };
    let client = |line: &str| {
        Some(Client {
            name: field(line, "name")?,
            database: field(line, "db")?.parse().ok()?,
            command: field(line, "cmd")?.to_ascii_lowercase(),
        })
    };
    text.lines().filter_map(client).collect()
}

/// How many wait for lists (or sorted sets) of a database: between two jobs as well as while they
/// wait, because what they do otherwise goes through other connections. One that does something else
/// there in between is missed for so long.
pub fn waiting(clients: &[Client], database: u32, commands: &[&str]) -> f64 {
    let is = |client: &&Client| client.database == database && commands.contains(&client.command.as_str());
    clients.iter().filter(is).count() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "id=3 addr=127.0.0.1:1 laddr=127.0.0.1:2 fd=8 name= age=4 idle=0 flags=b db=1 sub=0 cmd=brpop user=default\n\
        id=4 addr=127.0.0.1:1 fd=8 name=bull:cQ== age=4 idle=0 flags=b db=0 cmd=bzpopmin user=default lib-name= lib-ver=\n\
        id=5 addr=/run/r.sock:0 fd=8 name=opsd-monitor flags=N db=1 cmd=client|list\nnonsense\n";

    #[test]
    fn clients_are_told_by_name_database_and_command() {
        let clients = parse(LIST);
        assert_eq!(clients.len(), 3);
        assert_eq!(clients[1].name, "bull:cQ==");
        assert_eq!(waiting(&clients, 1, &["brpop"]), 1.0);
        assert_eq!(waiting(&clients, 0, &["brpop"]), 0.0);
        assert_eq!(connected("# Clients\r\nconnected_clients:17\r\nmaxclients:1\r\n"), Some(17));
        assert_eq!(connected(""), None);
    }
}
