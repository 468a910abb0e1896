//! Trying again: which failures pass, for how long, and how the log tells.
//!
//! The SDK's own retries are off: their quota starves where a third of all requests fail, they end
//! after half a minute, and they do not cover the body of an answer. Here one rule holds for every
//! request of a run. A store that has answered is waited for, three minutes from the first failure,
//! since hours of work may depend on it. A store that never answered is given up in seconds, or in half
//! a minute where it takes connections: its end point is probably mistyped. What waiting cannot change (a key that is refused, a
//! full bucket) is final at once.
//!
//! Credentials are part of the store: those that have worked once are waited for as long when nobody hands out
//! the next ones, and when the store finds that they have expired before this machine does. Only those that
//! were handed out for ever have expired for good.
//!
//! Every repetition is logged at `info`, and at `warn` once a request has failed for a while. A run
//! that succeeds says nothing else about it: stores refuse requests every day.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::S3Store;
use super::attempt::Attempt;
use super::failure::Failure;

/// How long a store that has answered may fail. Two minutes are what a fail-over, a restart or a
/// renewed address takes; a third is room for attempts that have to be waited for.
const PATIENCE: Duration = Duration::from_secs(180);

/// The same for one that never answered, and for what nothing depends on (aborting an upload, a question of a
/// probe's that some stores take for another one and answer with what cannot be read).
const BRIEF_PATIENCE: Duration = Duration::from_secs(6);

/// The same for one that never answered, but ended a connection that it had taken: something listens
/// there, and a mistyped end point seldom does.
const SOME_PATIENCE: Duration = Duration::from_secs(30);

/// Attempts that are made however long each of them takes.
const LEAST_ATTEMPTS: u32 = 3;

/// Attempts at what probably fails again: bytes that arrived damaged, a clock that is off (which the
/// SDK corrects after the first answer), credentials that cannot be loaded.
const FEW_ATTEMPTS: u32 = 4;

/// The first wait is at most this, every further one at most the double.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// No wait is longer: a store that is back is noticed soon.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// From when on a request that keeps failing is worth a warning.
const WORRY_AFTER: Duration = Duration::from_secs(20);

/// What is to be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stays.
    Final,
    /// It may be better the next time, but hardly the fifth.
    AFewTimes,
    /// It passes.
    Patiently,
}

/// How much depends on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// The run.
    Full,
    /// Nothing but tidiness.
    Brief,
}

impl Failure {
    /// Codes first: they say more than the status, which some stores choose freely.
    pub(super) fn verdict(&self) -> Verdict {
        match self.code.as_str() {
            "BadDigest"
            | "InvalidDigest"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch"
            | "IncompleteBody"
            | "RequestTimeTooSkewed" => return Verdict::AFewTimes,
            "RequestTimeout"
            | "SlowDown"
            | "SlowDownRead"
            | "SlowDownWrite"
            | "InternalError"
            | "ServiceUnavailable"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequests"
            | "RequestLimitExceeded"
            | "BandwidthLimitExceeded" => return Verdict::Patiently,
            "NotImplemented" => return Verdict::Final,
            _ if self.is_full() || self.is_too_much() => return Verdict::Final,
            _ => {}
        }
        // Whatever the answer was going to be, it did not arrive.
        if self.is_broken() {
            return Verdict::Patiently;
        }
        if self.is_conflict() {
            return Verdict::AFewTimes;
        }
        match self.status {
            Some(501 | 505) => Verdict::Final,
            Some(408 | 429 | 500..) => Verdict::Patiently,
            // AWS says 200 before it knows.
            Some(200..300) => Verdict::Patiently,
            Some(_) => Verdict::Final,
            None if self.is_about_credentials() => Verdict::AFewTimes,
            None if self.is_about_certificates() => Verdict::Final,
            None => Verdict::Patiently,
        }
    }

    /// Whether the store itself has spoken: what has a code speaks S3.
    fn is_an_answer(&self) -> bool {
        !self.code.is_empty() || self.status.is_some_and(|status| status < 500)
    }
}

/// The wait after the nth attempt. Between a half and all of the bound, as `random` (0 to 1) says,
/// so that streams which failed together do not come back together.
fn wait(attempt: u32, random: f64) -> Duration {
    let bound = FIRST_WAIT.saturating_mul(1 << (attempt - 1).min(16)).min(LONGEST_WAIT);
    bound.mul_f64(0.5 + random / 2.0)
}

/// Whether to go on after this many attempts, of which `few` failed with [`Verdict::AFewTimes`],
/// over the time since the first failure and the coming wait.
fn goes_on(verdict: Verdict, attempt: u32, few: u32, since: Duration, patience: Duration) -> bool {
    match verdict {
        Verdict::Final => false,
        Verdict::AFewTimes => few < FEW_ATTEMPTS,
        Verdict::Patiently => attempt < LEAST_ATTEMPTS || since <= patience,
    }
}

impl S3Store {
    /// Whether a request failed because of credentials that there will be others of.
    fn may_be_renewed(&self, failure: &Failure) -> bool {
        let expire = self.learned.credentials_expire.load(Ordering::Relaxed);
        failure.is_about_credentials() || (expire && failure.is_about_expiry())
    }

    /// Makes attempts until one succeeds or fails for good. `doing` is for the log: `read site/…`.
    pub(super) async fn retry<T, F>(
        &self,
        doing: &str,
        patience: Patience,
        attempt: impl Fn(Attempt) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let (reached, given_up) = (&self.learned.reached, &self.learned.given_up);
        let (mut number, mut few, mut first_failure, mut in_doubt) = (1, 0, None, false);
        loop {
            let mut failure = match attempt(Attempt::new(number)).await {
                Ok(answer) => {
                    reached.store(true, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            failure.attempts = number;
            in_doubt |= failure.may_be_done();
            failure.in_doubt = in_doubt;
            failure.remember_cause(&self.learned.no_credentials);
            if failure.is_an_answer() {
                reached.store(true, Ordering::Relaxed);
            }
            let verdict = match failure.verdict() {
                _ if reached.load(Ordering::Relaxed) && self.may_be_renewed(&failure) => Verdict::Patiently,
                verdict => verdict,
            };
            few += u32::from(verdict == Verdict::AFewTimes);
            let wait = wait(number, rand::random());
            let since = first_failure.get_or_insert_with(Instant::now).elapsed();
            let bound = match patience {
                Patience::Full if reached.load(Ordering::Relaxed) => PATIENCE,
                Patience::Full if failure.is_cut_off() && !given_up.load(Ordering::Relaxed) => SOME_PATIENCE,
                Patience::Full | Patience::Brief => BRIEF_PATIENCE,
            };
            if !goes_on(verdict, number, few, since + wait, bound) {
                if verdict == Verdict::Patiently && patience == Patience::Full {
                    // It is gone: what else is tried now need not wait as long again.
                    reached.store(false, Ordering::Relaxed);
                    given_up.store(true, Ordering::Relaxed);
                }
                return Err(failure);
            }
            let (why, seconds) = (failure.in_short(), wait.as_secs_f64());
            let said = format!(
                "cannot {doing} yet: {} {why}: attempt {number}, next in {seconds:.1} s",
                self.endpoint
            );
            if since < WORRY_AFTER {
                tracing::info!("{said}")
            } else {
                tracing::warn!("{said}")
            }
            tokio::time::sleep(wait).await;
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_sent_or_was_refused_is_no_doubt() {
        for failure in [
            Failure::broke("did not answer for 30 s"),
            Failure::unreached("connection reset by peer"),
            Failure::unreached("connection closed before message completed"),
            Failure::answered(500, "InternalError"),
            Failure::answered(502, ""),
            Failure::answered(200, "InternalError"),
        ] {
            assert!(failure.may_be_done(), "{}", failure.in_short());
        }
        for failure in [
            Failure::unreached("tcp connect error: Connection refused"),
            Failure::unreached("dns error: failed to lookup address information"),
            Failure::unreached("an error occurred while loading credentials"),
            Failure::unreached("identity resolver timed out after 8s"),
            Failure::unreached("invalid peer certificate: UnknownIssuer"),
            Failure::answered(403, "ExpiredToken"),
            Failure::answered(412, "PreconditionFailed"),
            Failure::answered(501, "NotImplemented"),
            Failure::answered(503, "SlowDown"),
            Failure::answered(507, "XMinioStorageFull"),
        ] {
            assert!(!failure.may_be_done(), "{}", failure.in_short());
        }
    }

    fn answered(status: u16, code: &str) -> Verdict {
        Failure::answered(status, code).verdict()
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        for (status, code) in [
            (500, "InternalError"),
            (503, "SlowDown"),
            (503, ""),
            (502, ""),
            (429, ""),
            (408, ""),
            (400, "RequestTimeout"),
            // AWS may find out only after it has said 200.
            (200, "InternalError"),
            (200, ""),
        ] {
            assert_eq!(answered(status, code), Verdict::Patiently, "{status} {code}");
        }
        for (status, code) in [
            (400, "ExpiredToken"),
            (403, "ExpiredToken"),
            (403, "InvalidAccessKeyId"),
            (403, "SignatureDoesNotMatch"),
            (403, "AccessDenied"),
            (403, ""),
            (404, "NoSuchUpload"),
            (404, "NoSuchBucket"),
            (412, "PreconditionFailed"),
            (501, "NotImplemented"),
            (507, ""),
            (507, "XMinioStorageFull"),
            (403, "QuotaExceeded"),
            (400, "SomethingNew"),
        ] {
            assert_eq!(answered(status, code), Verdict::Final, "{status} {code}");
        }
        for (status, code) in [
            (400, "BadDigest"),
            (400, "XAmzContentSHA256Mismatch"),
            (400, "IncompleteBody"),
            (403, "RequestTimeTooSkewed"),
            // "A conflicting operation occurred": nobody has decided anything yet.
            (409, "ConditionalRequestConflict"),
            (409, "OperationAborted"),
        ] {
            assert_eq!(answered(status, code), Verdict::AFewTimes, "{status} {code}");
        }
        let transport = |text: &str| Failure::unreached(text).verdict();
        assert_eq!(transport("tcp connect error: Connection refused"), Verdict::Patiently);
        assert_eq!(transport("an error occurred while loading credentials"), Verdict::AFewTimes);
        assert_eq!(transport("invalid peer certificate: UnknownIssuer"), Verdict::Final);
        assert_eq!(Failure::broke("5 bytes of 9 arrived").verdict(), Verdict::Patiently);
        assert_eq!(Failure::damaged("other checksum").verdict(), Verdict::AFewTimes);
    }

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        let bounds: Vec<f64> = (1..=8).map(|n| wait(n, 1.0).as_secs_f64()).collect();
        assert_eq!(bounds, [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]);
        assert_eq!(wait(1, 0.0), Duration::from_millis(125));
        assert_eq!(wait(u32::MAX, 0.0), Duration::from_secs(5));
    }

    /// Attempts and time until a request that fails at once, every time, is given up.
    fn endurance(verdict: Verdict, patience: Duration, random: f64) -> (u32, Duration) {
        let (mut attempt, mut since) = (1, Duration::ZERO);
        while goes_on(verdict, attempt, attempt, since + wait(attempt, random), patience) {
            since += wait(attempt, random);
            attempt += 1;
        }
        (attempt, since)
    }

    #[test]
    fn two_minutes_are_outlasted_and_typing_mistakes_are_not() {
        for random in [0.0, 0.5, 1.0] {
            let (attempts, time) = endurance(Verdict::Patiently, PATIENCE, random);
            assert!(time > Duration::from_secs(165) && time <= PATIENCE, "{attempts} in {time:?}");
            let (attempts, time) = endurance(Verdict::Patiently, BRIEF_PATIENCE, random);
            assert!(attempts >= 5 && time <= BRIEF_PATIENCE, "{attempts} in {time:?}");
            let (attempts, time) = endurance(Verdict::Patiently, SOME_PATIENCE, random);
            assert!(attempts >= 8 && time <= SOME_PATIENCE, "{attempts} in {time:?}");
            let (attempts, time) = endurance(Verdict::AFewTimes, PATIENCE, random);
            assert!(attempts == FEW_ATTEMPTS && time < Duration::from_secs(3), "{attempts} in {time:?}");
            assert_eq!(endurance(Verdict::Final, PATIENCE, random), (1, Duration::ZERO));
        }
        // Attempts that take long themselves are made three times all the same.
        assert!(goes_on(Verdict::Patiently, 2, 0, PATIENCE * 2, PATIENCE));
        assert!(!goes_on(Verdict::Patiently, 3, 0, PATIENCE * 2, PATIENCE));
    }
}
