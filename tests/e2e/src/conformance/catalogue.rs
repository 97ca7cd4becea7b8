//! The catalogue: every MUST and SHOULD of the runtime-spec in our own words, one file a document,
//! in `tests/e2e/conformance`. Read by [`super`]; knows nothing of cases.
//!
//! A section counts the keywords of its text, so that nobody can leave one out unnoticed: the
//! numbers were taken from the text of the specification by a program, and the entries must add
//! up to them.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Version of the runtime-spec that the catalogue is of.
pub(super) const SPECIFICATION: &str = "1.3.0";

/// The files, in the order of the specification.
const FILES: [&str; 6] = [
    include_str!("../../conformance/runtime.toml"),
    include_str!("../../conformance/runtime-linux.toml"),
    include_str!("../../conformance/config.toml"),
    include_str!("../../conformance/config-linux.toml"),
    include_str!("../../conformance/features.toml"),
    include_str!("../../conformance/features-linux.toml"),
];

/// One document of the specification.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// Its file name without the ending.
    pub(super) document: String,
    /// Its sections that demand something.
    pub(super) section: Vec<Section>,
}

/// One section of a document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    /// Its heading, in small letters with dashes.
    pub(super) id: String,
    /// How often the text, examples left out, says MUST, REQUIRED or SHALL, negated or not.
    #[serde(default)]
    pub(super) must: u32,
    /// How often it says SHOULD or RECOMMENDED.
    #[serde(default)]
    pub(super) should: u32,
    /// What it demands, in the order of the text.
    pub(super) entry: Vec<Entry>,
}

/// One requirement.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Its number in the section, from 1.
    pub(super) n: u32,
    /// How strong it is.
    #[serde(default)]
    pub(super) level: Level,
    /// Whom it binds, where that is not the runtime.
    pub(super) on: Option<String>,
    /// What it demands.
    pub(super) says: String,
    /// Keywords of the text that it stands for.
    #[serde(default = "one")]
    pub(super) keywords: u32,
    /// Unit tests that prove it: `path/of/file.rs::name_of_the_test`.
    #[serde(default)]
    pub(super) tests: Vec<String>,
    /// Why Lazaret does not do it.
    pub(super) not_met: Option<String>,
    /// Why it cannot mean anything where containers run in a VM.
    pub(super) not_applicable: Option<String>,
    /// What else there is to know.
    pub(super) note: Option<String>,
}

/// Strength of a requirement (RFC 2119).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// MUST, REQUIRED, SHALL.
    #[default]
    Must,
    /// SHOULD, RECOMMENDED.
    Should,
}

impl Level {
    /// The word of the specification.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
        }
    }
}

const fn one() -> u32 {
    1
}

/// Reads all documents.
///
/// # Errors
/// If one is not of the form above, or leaves out a keyword of the specification.
pub(super) fn documents() -> Result<Vec<Document>> {
    FILES
        .iter()
        .map(|text| {
            let first = text.lines().next().unwrap_or_default();
            let document: Document = toml::from_str(text)
                .with_context(|| format!("the catalogue that begins {first:?}"))?;
            for section in &document.section {
                is_complete(section)
                    .with_context(|| format!("{}#{}", document.document, section.id))?;
            }
            Ok(document)
        })
        .collect()
}

/// The numbers have no gap, and the keywords add up.
fn is_complete(section: &Section) -> Result<()> {
    for (entry, n) in section.entry.iter().zip(1..) {
        ensure!(entry.n == n, "number {n} is missing");
    }
    for (level, stated) in [(Level::Must, section.must), (Level::Should, section.should)] {
        let entries = section.entry.iter().filter(|entry| entry.level == level);
        let sum: u32 = entries.map(|entry| entry.keywords).sum();
        ensure!(
            sum == stated,
            "the entries stand for {sum} {}, the text has {stated}",
            level.word()
        );
    }
    Ok(())
}

/// The id that cases name: `config-linux#namespaces-4`.
pub(super) fn id(document: &Document, section: &Section, entry: &Entry) -> String {
    format!("{}#{}-{}", document.document, section.id, entry.n)
}
