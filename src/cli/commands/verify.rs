use clap::Args;
use crate::cli::app::App;
use crate::cli::report::{Answer, Fields};
use crate::error::Result;
/// x
#[derive(Debug, Args)]
pub struct Verify {}
impl Verify {
    pub fn request(&self) -> Fields { Vec::new() }
    pub fn run(&self, _app: &App) -> Result<Answer> { Ok(Answer::default()) }
}
