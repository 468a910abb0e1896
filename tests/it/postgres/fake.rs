//! Something that answers like a server, for answers that a real one gives too rarely.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Listens on a free port, refuses TLS, and answers every startup packet and then every query with
/// the given messages. Ends with the runtime.
pub async fn server(startup: Vec<u8>, query: Vec<u8>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, startup.clone(), query.clone()));
        }
    });
    port
}

async fn serve(mut stream: TcpStream, startup: Vec<u8>, query: Vec<u8>) -> std::io::Result<()> {
    const SSL_REQUEST: u32 = 80_877_103;
    loop {
        let length = stream.read_u32().await?;
        let mut packet = vec![0; length as usize - 4];
        stream.read_exact(&mut packet).await?;
        if packet.starts_with(&SSL_REQUEST.to_be_bytes()) {
            stream.write_all(b"N").await?;
        } else {
            break;
        }
    }
    stream.write_all(&startup).await?;
    let mut byte = [0; 1024];
    while stream.read(&mut byte).await? > 0 {
        stream.write_all(&query).await?;
    }
    Ok(())
}

/// One message of the protocol.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// ErrorResponse.
pub fn fatal(code: &str, text: &str) -> Vec<u8> {
    message(b'E', format!("SFATAL\0VFATAL\0C{code}\0M{text}\0\0").as_bytes())
}

/// AuthenticationOk and ReadyForQuery.
pub fn welcome() -> Vec<u8> {
    [message(b'R', &0u32.to_be_bytes()), message(b'Z', b"I")].concat()
}

/// One row of text columns, as the answer to a simple query.
pub fn row(values: &[&str]) -> Vec<u8> {
    let count = u16::try_from(values.len()).unwrap().to_be_bytes();
    let mut description = count.to_vec();
    let mut data = count.to_vec();
    for value in values {
        description.extend_from_slice(b"c\0");
        description.extend_from_slice(&[0; 18]);
        data.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        data.extend_from_slice(value.as_bytes());
    }
    [message(b'T', &description), message(b'D', &data), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")]
        .concat()
}
