//! Whose a connection is by its address: behind proxies that we trust, the one that they name.
//!
//! `X-Forwarded-For` is read from the right, where the nearest proxy wrote, and only as far as the proxies are ours:
//! what stands further left was said by whoever is not (RFC 7239 §8.1 has the reasons). Both ports go by it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Addresses that count as one: an IPv6 customer has a whole /64 to take addresses from.
pub fn limited_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
    }
}

/// A network in CIDR notation; IPv4 as mapped into IPv6, so that one comparison serves both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    bits: u128,
    prefix: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().ok()?;
        let (longest, shift) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
        let prefix = prefix.map_or(Some(longest), |prefix| prefix.parse().ok().filter(|bits| *bits <= longest))?;
        Some(Self { bits: mapped(address), prefix: prefix + shift })
    }

    const fn contains(self, address: u128) -> bool {
        // A shift by all 128 bits is not defined.
        self.prefix == 0 || (self.bits ^ address) >> (128 - self.prefix) == 0
    }
}

const fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Proxies whose word is taken for where a request comes from.
#[derive(Clone, Debug, Default)]
pub struct Proxies(Vec<Network>);

impl Proxies {
    /// Reads addresses and networks.
    ///
    /// # Errors
    /// One line that names the entry that is neither.
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let parse = |text: &String| {
            Network::parse(text).ok_or_else(|| {
                format!("server.proxies: {text:?} is no address or network; write 10.0.0.7, 10.0.0.0/8 or fd00::/8")
            })
        };
        texts.iter().map(parse).collect::<Result<_, _>>().map(Self)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let bits = mapped(address);
        self.0.iter().any(|network| network.contains(bits))
    }

    /// Whose request it is: `peer`'s own, or, where that is a proxy of ours, that of the nearest address in
    /// `forwarded` (the values of `X-Forwarded-For` in their order) that is none.
    pub fn client_of<'a>(&self, peer: IpAddr, forwarded: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let mut client = peer;
        for entry in forwarded.rev().flat_map(|value| value.split(',').rev()) {
            if !self.trusts(client) {
                break;
            }
            match parse_entry(entry.trim()) {
                Some(address) => client = address,
                // What follows further left hangs on something that nobody can read.
                None => break,
            }
        }
        client
    }
}

/// An entry of `X-Forwarded-For`: an address, as some proxies write it with its port.
fn parse_entry(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    let address = bare.parse().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(proxies: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let proxies = Proxies::parse(&proxies.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        proxies.client_of(peer.parse().unwrap(), forwarded.iter().copied()).to_string()
    }

    #[test]
    fn only_a_listed_proxy_is_believed_and_only_its_own_entry() {
        let ours = ["10.0.0.0/8", "fd00::/8"];
        for (peer, forwarded, of) in [
            ("203.0.113.9", &["198.51.100.1"][..], "203.0.113.9"),
            ("10.1.2.3", &["198.51.100.1"], "198.51.100.1"),
            ("10.1.2.3", &["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
            ("10.1.2.3", &["6.6.6.6, 198.51.100.1, 10.9.9.9"], "198.51.100.1"),
            ("10.1.2.3", &["6.6.6.6", "198.51.100.1, 10.9.9.9"], "198.51.100.1"),
            ("10.1.2.3", &["10.7.7.7, 10.9.9.9"], "10.7.7.7"),
            ("10.1.2.3", &["198.51.100.1, nonsense"], "10.1.2.3"),
            ("10.1.2.3", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.1.2.3", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("fd00::1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            ("10.1.2.3", &[], "10.1.2.3"),
        ] {
            assert_eq!(client(&ours, peer, forwarded), of, "{peer} {forwarded:?}");
        }
        assert_eq!(client(&[], "10.1.2.3", &["198.51.100.1"]), "10.1.2.3");
        assert_eq!(client(&["0.0.0.0/0"], "10.1.2.3", &["198.51.100.1"]), "198.51.100.1");
    }

    #[test]
    fn what_is_no_network_is_named() {
        for bad in ["10.0.0.0/33", "::/129", "10.0.0", "proxy.example", "10.0.0.0/-1", ""] {
            let error = Proxies::parse(&[bad.to_owned()]).unwrap_err();
            assert!(error.contains("server.proxies") && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn the_addresses_of_one_ipv6_customer_are_limited_as_one() {
        let limited = |text: &str| limited_as(text.parse().unwrap()).to_string();
        assert_eq!(limited("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(limited("203.0.113.9"), "203.0.113.9");
        assert_eq!(limited("::ffff:203.0.113.9"), "203.0.113.9");
    }
}
