//! How often the tests ask chance.

use proptest::test_runner::Config;

/// So many cases in a run of all tests, and as many times more as there are more than the four rounds of such a run:
/// `PGKEEP_TEST_ROUNDS`, which `tests/soak` sets.
pub(crate) fn cases(usual: u32) -> Config {
    let rounds = std::env::var("PGKEEP_TEST_ROUNDS").map(|rounds| rounds.parse::<u32>());
    let rounds = rounds.map_or(Ok(4), |rounds| rounds).unwrap_or(4);
    Config::with_cases(usual * rounds / 4)
}
