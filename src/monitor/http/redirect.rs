//! Where a redirect may lead: a server that is probed must not choose which of this network's services are
//! asked on its behalf.
//!
//! A target that is itself inside (loopback, link-local or private, with every address of its name) may redirect
//! to others that are; one outside may not. To the addresses where clouds hand out credentials no redirect leads. Names are judged by
//! what they resolve to, at the connection that uses it, so that a name that resolves differently the second
//! time gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Url, redirect};

/// Where clouds tell whoever asks about the machine: AWS, Azure, Google and most others; AWS by IPv6; Alibaba;
/// Oracle; Azure's agent.
const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// How far one collection has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Hops {
    /// Redirects that were followed.
    followed: Arc<AtomicUsize>,
    /// Whether the target itself is inside, with all of its addresses.
    is_inside: Arc<AtomicBool>,
    /// What the last name stands for.
    addresses: Arc<Mutex<Vec<IpAddr>>>,
}

impl Hops {
    /// Before the first request to a URL.
    pub(super) fn of(url: &str) -> Self {
        let hops = Self::default();
        if let Some(address) = Url::parse(url).ok().as_ref().and_then(literal) {
            hops.is_inside.store(is_inside(address), Ordering::Relaxed);
        }
        hops
    }

    /// The addresses that were tried last, where a name was looked up.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many redirects were followed.
    pub(super) fn followed(&self) -> usize {
        self.followed.load(Ordering::Relaxed)
    }

    /// Follows so many redirects. At the limit the redirect itself is the answer, and its status is no
    /// expected one.
    pub(super) fn policy(&self, most: usize) -> Policy {
        let hops = self.clone();
        Policy::custom(move |attempt: redirect::Attempt<'_>| {
            if attempt.previous().len() > most {
                return attempt.stop();
            }
            if let Some(why) = literal(attempt.url()).and_then(|address| hops.refusal(address)) {
                return attempt.error(why);
            }
            hops.followed.store(attempt.previous().len(), Ordering::Relaxed);
            attempt.follow()
        })
    }

    /// Why a redirect may not lead to an address.
    fn refusal(&self, address: IpAddr) -> Option<String> {
        let address = plain(address);
        if METADATA.contains(&address) {
            return Some(format!(
                "a redirect to {address}, where a cloud hands out credentials, is not followed"
            ));
        }
        (is_inside(address) && !self.is_inside.load(Ordering::Relaxed)).then(|| {
            format!(
                "a redirect to {address}, which is inside this network, is not followed from outside of it"
            )
        })
    }

    fn judge(&self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, String> {
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) =
            addresses.iter().map(SocketAddr::ip).collect();
        if self.followed() == 0 {
            // Which of them is asked is not known here, and whoever owns the name chose all of them.
            let inside = !addresses.is_empty() && addresses.iter().all(|address| is_inside(address.ip()));
            self.is_inside.store(inside, Ordering::Relaxed);
            return Ok(addresses);
        }
        match addresses.iter().find_map(|address| self.refusal(address.ip())) {
            Some(why) => Err(why),
            None => Ok(addresses),
        }
    }
}

impl Resolve for Hops {
    fn resolve(&self, name: Name) -> Resolving {
        let hops = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let addresses: Addrs = Box::new(hops.judge(found)?.into_iter());
            Ok(addresses)
        })
    }
}

/// The address that stands in a URL in the place of a name; nobody resolves it.
fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// An IPv4 address however it is wrapped into IPv6: mapped, or by NAT64.
fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                IpAddr::V4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
            }
            _ => v6.to_canonical(),
        },
        v4 => v4,
    }
}

/// Loopback, link-local, private, or nowhere in particular, which is this host, too.
fn is_inside(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_private()
                || first == 0
                || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(v6) => {
            v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_unique_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    #[test]
    fn inside_is_what_only_this_network_reaches() {
        for inside in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "64:ff9b::10.0.0.1",
        ] {
            assert!(is_inside(at(inside)), "{inside}");
        }
        for outside in ["198.51.100.1", "172.32.0.1", "100.63.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!is_inside(at(outside)), "{outside}");
        }
    }

    #[test]
    fn a_redirect_leads_inside_only_from_inside_and_to_metadata_never() {
        let outside = Hops::of("http://198.51.100.1/");
        let inside = Hops::of("http://127.0.0.1:1/");
        for address in ["127.0.0.1", "10.0.0.1", "fe80::1", "::ffff:192.168.0.1"] {
            assert!(outside.refusal(at(address)).is_some(), "{address}");
            assert!(inside.refusal(at(address)).is_none(), "{address}");
        }
        assert!(outside.refusal(at("203.0.113.1")).is_none());
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "fd00:ec2::254",
            "100.100.100.200",
        ] {
            assert!(
                inside.refusal(at(address)).is_some() && outside.refusal(at(address)).is_some(),
                "{address}"
            );
        }
    }

    #[test]
    fn a_name_is_judged_by_what_it_resolves_to_each_time() {
        let sockets = |address: &str| vec![SocketAddr::new(at(address), 0)];
        let hops = Hops::of("http://example.org/");
        assert!(hops.judge(sockets("198.51.100.1")).is_ok());
        hops.followed.store(1, Ordering::Relaxed);
        assert!(hops.judge(sockets("203.0.113.1")).is_ok());
        assert!(hops.judge(sockets("127.0.0.1")).is_err());
        let both = vec![SocketAddr::new(at("203.0.113.1"), 0), SocketAddr::new(at("10.0.0.1"), 0)];
        assert!(hops.judge(both).is_err(), "one of several is enough");
    }

    /// The owner of a name outside may let the name stand for an address inside, too.
    #[test]
    fn a_target_is_inside_only_with_all_of_its_addresses() {
        let sockets = |addresses: &[&str]| -> Vec<SocketAddr> {
            addresses.iter().map(|address| SocketAddr::new(at(address), 0)).collect()
        };
        for (target, leads_inside) in [
            (&["10.0.0.1", "127.0.0.1"][..], true),
            (&["198.51.100.1", "10.0.0.1"], false),
            (&["10.0.0.1", "198.51.100.1"], false),
            (&[], false),
        ] {
            let hops = Hops::of("http://example.org/");
            assert!(hops.judge(sockets(target)).is_ok());
            hops.followed.store(1, Ordering::Relaxed);
            assert_eq!(hops.judge(sockets(&["127.0.0.1"])).is_ok(), leads_inside, "{target:?}");
            assert_eq!(hops.refusal(at("127.0.0.1")).is_none(), leads_inside, "{target:?}");
        }
    }
}
