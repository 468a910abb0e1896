//! The HTTP proxy between this host and a store, as the environment names it.
//!
//! `https_proxy` or `HTTPS_PROXY` for an end point with TLS, which gets a tunnel; `http_proxy` or `HTTP_PROXY` for one
//! without; `all_proxy` or `ALL_PROXY` for both; `no_proxy` or `NO_PROXY` lists who is reached without one. What hands
//! out a cloud's credentials is in reach of its own machines alone, and never asked by way of a proxy. Deliberately
//! absent: proxies behind TLS and SOCKS, which are refused by name.

use aws_smithy_http_client::proxy::ProxyConfig;
use hyper_util::client::proxy::matcher::Matcher;

use crate::config::environment;
use crate::store::StoreError;

/// Metadata services of instances and containers, which hand out credentials.
const METADATA: &str = "169.254.169.254,169.254.170.2,169.254.170.23,fd00:ec2::254,fd00:ec2::23";

/// Where no end point is configured, as far as rules about proxies go.
const AWS: &str = "https://s3.amazonaws.com";

/// A proxy, and how messages name it.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) config: ProxyConfig,
    /// `http://host:port`, without who signs in there.
    pub(super) shown: String,
}

/// The proxy for a store at this end point (absent: AWS); `None` where it is reached without one.
pub(super) fn of_environment(endpoint: Option<&str>) -> Result<Option<Proxy>, StoreError> {
    let set = |name: &str| {
        [name.to_lowercase(), name.to_owned()].into_iter().find_map(|name| {
            let value = environment(&name).filter(|value| !value.is_empty())?;
            Some((name, value))
        })
    };
    let is_plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let own = if is_plain { "HTTP_PROXY" } else { "HTTPS_PROXY" };
    let Some((name, value)) = set(own).or_else(|| set("ALL_PROXY")) else { return Ok(None) };
    let except = set("NO_PROXY").map_or_else(String::new, |(_, value)| format!("{value},"));
    let except = format!("{except}{METADATA}");
    let proxy = parse(&value, is_plain).map_err(|why| {
        StoreError::Other(format!("{name} {why}: it must be http://host:port, or unset for opsd"))
    })?;
    let matcher = Matcher::builder().all(proxy.shown.clone()).no(except.clone()).build();
    let is_used = endpoint.unwrap_or(AWS).parse().is_ok_and(|uri| matcher.intercept(&uri).is_some());
    Ok(is_used.then(|| Proxy { config: proxy.config.no_proxy(except), ..proxy }))
}

/// What a variable names.
fn parse(value: &str, is_plain: bool) -> Result<Proxy, &'static str> {
    let rest = match value.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, _)) if scheme.to_ascii_lowercase().starts_with("socks") => {
            return Err("names a SOCKS proxy, which opsd does not speak to");
        }
        Some(_) => return Err("names a proxy that is not spoken to by plain HTTP"),
        // As curl takes it.
        None => value,
    };
    let authority = rest.trim_end_matches('/');
    let (sign_in, host) = match authority.rsplit_once('@') {
        Some((sign_in, host)) => (Some(sign_in), host),
        None => (None, authority),
    };
    // An @ of a password's is written %40.
    if host.is_empty() || host.contains(['/', '?', '#']) || sign_in.is_some_and(|text| text.contains('@')) {
        return Err("is no URL of a proxy");
    }
    let shown = format!("http://{host}");
    // Whoever signs in does so in the URL; what is no URL with that is none without.
    let url = sign_in.map_or_else(|| shown.clone(), |sign_in| format!("http://{sign_in}@{host}"));
    let config = if is_plain { ProxyConfig::http(url) } else { ProxyConfig::https(url) };
    Ok(Proxy { config: config.map_err(|_| "is no URL of a proxy")?, shown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_shown_without_who_signs_in_there() {
        for (value, shown) in [
            ("http://proxy.example.org:3128/", "http://proxy.example.org:3128"),
            ("HTTP://user:pa@ss@10.0.0.1:3128", "http://10.0.0.1:3128"),
            ("proxy:3128", "http://proxy:3128"),
        ] {
            let proxy = parse(value, false).map(|proxy| proxy.shown);
            assert_eq!(
                proxy.as_deref().unwrap_or("none"),
                if value.contains("pa@ss") { "none" } else { shown }
            );
        }
        for value in ["socks5h://h:1", "https://h:1", "http://", "http://h:1/path", "http://a b"] {
            assert!(parse(value, true).is_err(), "{value}");
        }
    }
}
