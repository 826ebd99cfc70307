//! The rule set of Python, compiled once: what each type of command means and who may do what.

use crate::accounts::{OwnRates, Rates, Seats};
use crate::bucket::Rate;
use crate::channel::{Keep, Policy};
use crate::latest::Retain;
use crate::options::{CompressionOptions, Crowd, Endpoint, Limits, Options, PolicyOptions, Route};
use crate::pattern::{Grant, Pattern, Rights, rights_on};
use crate::relay::{ChannelTemplate, Relay};
use realtime_protocol::address::Proxies;
use std::collections::{HashMap, HashSet};

/// Bytes of one token of the bucket of bytes.
pub(crate) const BYTES_UNIT: u32 = 64;

/// Events of the largest size that the log's queue must hold: one that changes another is two, and a user has half.
const LOG_QUEUE_EVENTS_MIN: usize = 4;

/// The most tokens that a bucket holds.
const BURST_MAX: u32 = 4_000_000;

/// More than the parser keeps beside the payload.
const KEPT_ABOUT_A_MESSAGE: usize = 1_024;

/// What a type of command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Subscribe,
    Unsubscribe,
    Ping,
    Publish,
    History,
    Refresh,
    Relay(u16),
    Route(u16),
}

/// What a command for Python needs.
#[derive(Debug)]
pub(crate) struct Guard {
    pub right: Rights,
    pub channel: ChannelTemplate,
    /// The message where the right is missing.
    pub failure: Option<&'static str>,
    /// The message where a member that the template names is missing, null or empty.
    pub missing: Option<&'static str>,
}

/// Commands that are limited together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Everything that is no relay.
    Commands,
    /// What turns round in the hub: typing, cursors.
    Relays,
}

/// Everything that was decided before the first connection.
pub(crate) struct Rules {
    pub limits: Limits,
    pub proxies: Proxies,
    pub compression: CompressionOptions,
    pub endpoints: Vec<Endpoint>,
    pub tell_tokens: bool,
    /// Types come from clients: std's keyed hash.
    pub verbs: HashMap<Box<str>, Verb>,
    pub guards: Vec<Option<Guard>>,
    pub relays: Vec<Relay>,
    pub authorize: Vec<Pattern>,
    pub reserved_events: HashSet<String>,
    listen: Vec<Pattern>,
    policies: Vec<(Pattern, Policy)>,
    retention: Vec<(Pattern, Keep)>,
    open_grants: Vec<Grant>,
}

impl Rules {
    pub(crate) fn compile(options: &Options) -> Result<Self, String> {
        let mut verbs: HashMap<Box<str>, Verb> = HashMap::from([
            ("subscribe".into(), Verb::Subscribe),
            ("unsubscribe".into(), Verb::Unsubscribe),
            ("ping".into(), Verb::Ping),
            ("publish".into(), Verb::Publish),
            ("history".into(), Verb::History),
            ("refresh".into(), Verb::Refresh),
        ]);
        let mut name = |kind: &str, verb: Verb| match verbs.insert(kind.into(), verb) {
            None => Ok(()),
            Some(_) => Err(format!("command type {kind:?} is there already; give the handler or relay another name")),
        };
        for (place, relay) in options.relays.iter().enumerate() {
            name(&relay.kind, Verb::Relay(place as u16))?;
        }
        let mut guards = Vec::with_capacity(options.routes.len());
        for (place, route) in options.routes.iter().enumerate() {
            match route {
                Route::Plain(kind) => {
                    name(kind, Verb::Route(place as u16))?;
                    guards.push(None);
                }
                Route::Guarded { kind, right, channel, failure, missing } => {
                    name(kind, Verb::Route(place as u16))?;
                    // Options are read once a process, so the text may live as long as it.
                    let kept =
                        |text: &Option<String>| text.as_ref().map(|text| &*Box::leak(text.clone().into_boxed_str()));
                    guards.push(Some(Guard {
                        right: Rights::from_names(&[right])?,
                        channel: ChannelTemplate::new(channel)?,
                        failure: kept(failure),
                        missing: kept(missing),
                    }));
                }
            }
        }
        let Limits { log_queue_bytes_max: queue, publication_bytes_max: event, .. } = options.limits;
        if queue < LOG_QUEUE_EVENTS_MIN * event {
            return Err(format!(
                "limits.log_queue_bytes_max={queue} holds less than {LOG_QUEUE_EVENTS_MIN} events of \
                 limits.publication_bytes_max={event}; raise the first or lower the second"
            ));
        }
        let policies = options.policies.iter().map(|rule| {
            let keep = keep_of(&rule.pattern, rule.keep_s, rule.keep_events)?;
            let retain = retain_of(rule)?;
            let policy = Policy { durable: rule.durable, history: rule.history, overflow: rule.overflow, keep, retain };
            Ok((Pattern::new(&rule.pattern)?, policy))
        });
        let retention = options
            .retention
            .iter()
            .map(|rule| Ok((Pattern::new(&rule.pattern)?, keep_of(&rule.pattern, rule.keep_s, rule.keep_events)?)));
        let open_grants = options.open_grants.iter().map(|grant| {
            Ok(Grant { pattern: Pattern::new(&grant.pattern)?, rights: Rights::from_names(&grant.rights)? })
        });
        Ok(Self {
            limits: options.limits.clone(),
            proxies: Proxies::parse(&options.proxies)?,
            compression: compression_of(&options.compression)?,
            endpoints: options.endpoints.clone(),
            tell_tokens: options.tell_tokens,
            verbs,
            guards,
            relays: Relay::compile_all(&options.relays)?,
            authorize: options.authorize.iter().map(|pattern| Pattern::new(pattern)).collect::<Result<_, _>>()?,
            reserved_events: options.reserved_events.iter().cloned().collect(),
            listen: options.listen.iter().map(|pattern| Pattern::new(pattern)).collect::<Result<_, _>>()?,
            policies: policies.collect::<Result<_, String>>()?,
            retention: retention.collect::<Result<_, String>>()?,
            open_grants: open_grants.collect::<Result<_, String>>()?,
        })
    }

    pub(crate) fn policy_of(&self, channel: &str) -> Policy {
        self.policies
            .iter()
            .find(|(pattern, _)| pattern.covers(channel, ""))
            .map_or(Policy::VOLATILE, |(_, policy)| *policy)
    }

    /// The same with what the operator says of it; memory never holds more than is kept.
    pub(crate) fn kept_policy_of(&self, channel: &str) -> Policy {
        let mut policy = self.policy_of(channel);
        if let Some((_, keep)) = self.retention.iter().find(|(pattern, _)| pattern.covers(channel, "")) {
            policy.keep = *keep;
        }
        let most = policy.keep.events.map_or(usize::MAX, |events| usize::try_from(events).unwrap_or(usize::MAX));
        policy.history = policy.history.min(most);
        policy
    }

    /// Whether any channel keeps less than everything.
    pub(crate) fn has_retention(&self) -> bool {
        let keeps =
            self.policies.iter().map(|(_, policy)| policy.keep).chain(self.retention.iter().map(|(_, keep)| *keep));
        keeps.into_iter().any(|keep| keep != Keep::ALL)
    }

    /// Whether any channel keeps something in memory for a time.
    pub(crate) fn ages(&self) -> bool {
        let in_memory = |keep: &Keep| keep.s.is_some();
        self.policies.iter().any(|(_, policy)| policy.ages()) || self.retention.iter().any(|(_, keep)| in_memory(keep))
    }

    /// Whether Python hears the events of the channel.
    pub(crate) fn is_heard(&self, channel: &str) -> bool {
        self.listen.iter().any(|pattern| pattern.covers(channel, ""))
    }

    /// What every session of this user may do on the channel.
    pub(crate) fn open_rights(&self, channel: &str, user: &str) -> Rights {
        rights_on(&self.open_grants, channel, user)
    }

    /// What one connection may ask for.
    pub(crate) const fn own_rate(&self, traffic: Traffic) -> Rate {
        match traffic {
            Traffic::Commands => self.rate(self.limits.commands_per_s, self.limits.commands_burst),
            Traffic::Relays => self.rate(self.limits.relays_per_s, self.limits.relays_burst),
        }
    }

    /// What all connections of a user may ask for.
    pub(crate) const fn user_rate(&self, traffic: Traffic) -> Rate {
        match traffic {
            Traffic::Commands => self.rate(self.limits.user_commands_per_s, self.limits.user_commands_burst),
            Traffic::Relays => self.rate(self.limits.user_relays_per_s, self.limits.user_relays_burst),
        }
    }

    /// What all connections of an address may ask for.
    pub(crate) const fn address_rate(&self, traffic: Traffic) -> Rate {
        match traffic {
            Traffic::Commands => self.rate(self.limits.address_commands_per_s, self.limits.address_commands_burst),
            Traffic::Relays => self.rate(self.limits.address_relays_per_s, self.limits.address_relays_burst),
        }
    }

    /// What is taken for a page until it is known, of what it may cost: a quarter of any burst at most, so that whoever
    /// has a small one may ask for pages, too.
    pub(crate) fn reserved_milli(&self, milli: u32) -> u32 {
        let commands = Traffic::Commands;
        let rates = [self.own_rate(commands), self.user_rate(commands), self.address_rate(commands)];
        let smallest = rates.into_iter().filter(|rate| rate.per_s > 0).map(|rate| rate.burst / 4 * 1_000).min();
        milli.min(smallest.unwrap_or(milli))
    }

    pub(crate) const fn handshake_rate(&self) -> Rate {
        self.rate(self.limits.address_handshakes_per_s, self.limits.address_handshakes_burst)
    }

    /// What the accounts of users are held to.
    pub(crate) const fn user_rates(&self) -> Rates {
        let (commands, relays) = (self.user_rate(Traffic::Commands), self.user_rate(Traffic::Relays));
        let handshakes = self.rate(self.limits.user_handshakes_per_s, self.limits.user_handshakes_burst);
        Rates { commands, relays, handshakes, stored: self.stored_rate(), own: self.own_rates() }
    }

    /// What a user may have stored, in KiB.
    pub(crate) const fn stored_rate(&self) -> Rate {
        let Limits { user_stored_bytes_per_s, user_stored_bytes_burst, .. } = &self.limits;
        self.rate(user_stored_bytes_per_s.div_ceil(1 << 10), user_stored_bytes_burst.div_ceil(1 << 10))
    }

    /// Bytes that all unfinished messages may hold. Where that is one of the longest, what is kept about it fits, too.
    pub(crate) const fn unfinished_bytes_max(&self) -> usize {
        let (most, one) = (self.limits.unfinished_bytes_max, self.limits.message_bytes_max);
        if most == one { most + KEPT_ABOUT_A_MESSAGE } else { most }
    }

    /// What the accounts of addresses are held to.
    pub(crate) const fn address_rates(&self) -> Rates {
        let (commands, relays) = (self.address_rate(Traffic::Commands), self.address_rate(Traffic::Relays));
        // Theirs is taken before anybody knows who it is: see [`crate::handshakes`].
        let handshakes = self.rate(0, 0);
        Rates { commands, relays, handshakes, stored: self.rate(0, 0), own: self.own_rates() }
    }

    const fn own_rates(&self) -> OwnRates {
        let (commands, relays) = (self.own_rate(Traffic::Commands), self.own_rate(Traffic::Relays));
        OwnRates { commands, relays, bytes: self.bytes_rate() }
    }

    /// Whether anything but handshakes is limited by address, for those who have a name: who has none is known by the
    /// address alone.
    pub(crate) const fn counts_addresses(&self) -> bool {
        let limits = &self.limits;
        limits.enabled
            && (limits.connections_per_address_max > 0
                || limits.address_commands_per_s > 0
                || limits.address_relays_per_s > 0)
    }

    pub(crate) fn user_seats(&self) -> Seats {
        let replaces = self.limits.sessions_per_user_over == Crowd::CloseOldest;
        Seats { most: self.limits.sessions_per_user_max, replaces }
    }

    pub(crate) const fn address_seats(&self) -> Seats {
        Seats { most: self.limits.connections_per_address_max, replaces: false }
    }

    /// In units of [`BYTES_UNIT`], so that a burst of many megabytes fits a bucket. A burst is two seconds.
    pub(crate) const fn bytes_rate(&self) -> Rate {
        let per_s = self.limits.bytes_per_s.div_ceil(BYTES_UNIT);
        self.rate(per_s, per_s.saturating_mul(2))
    }

    const fn rate(&self, per_s: u32, burst: u32) -> Rate {
        // A bucket counts to four million, far above what anybody can send at once.
        let burst = if burst == 0 { per_s } else { burst };
        let burst = if burst > BURST_MAX { BURST_MAX } else { burst };
        Rate { per_s: if self.limits.enabled { per_s } else { 0 }, burst }
    }
}

fn compression_of(options: &CompressionOptions) -> Result<CompressionOptions, String> {
    match options.level {
        1..=9 => Ok(options.clone()),
        level => Err(format!("compression: level={level} is not from 1 (quick) to 9 (small)")),
    }
}

/// Keys that a channel retains at most: a new member gets them all.
const RETAIN_KEYS_MAX: usize = 1_000;
/// A century, so that nothing that is computed with it in milliseconds runs over.
const KEEP_S_MAX: u64 = 100 * 365 * 86_400;

fn retain_of(rule: &PolicyOptions) -> Result<Retain, String> {
    let PolicyOptions { pattern, history, retain_latest: keys, retain_latest_s: s, .. } = rule;
    if *keys > RETAIN_KEYS_MAX {
        return Err(format!("policy {pattern:?}: retain_latest={keys} is not from 0 to {RETAIN_KEYS_MAX} keys"));
    }
    if *s == 0 || *s > KEEP_S_MAX {
        return Err(format!("policy {pattern:?}: retain_latest_s={s} is not from 1 to {KEEP_S_MAX}"));
    }
    if *keys > 0 && *history > 0 && !rule.durable {
        return Err(format!(
            "policy {pattern:?}: history={history} numbers every event, and retain_latest={keys} is for those without a number; \
             leave one of them out"
        ));
    }
    Ok(Retain { keys: *keys, ms: s * 1_000 })
}

fn keep_of(pattern: &str, s: Option<u64>, events: Option<u64>) -> Result<Keep, String> {
    match (s, events) {
        (Some(s), _) if s == 0 || s > KEEP_S_MAX => {
            Err(format!("policy {pattern:?}: keep_s={s} is not from 1 to {KEEP_S_MAX}; leave it out to keep for ever"))
        }
        (_, Some(0)) => Err(format!("policy {pattern:?}: keep_events=0; use 1 or more, or leave it out to keep all")),
        _ => Ok(Keep { s, events }),
    }
}
