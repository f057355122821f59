//! Converts sections to JSON, for settings that have no meaning for the host.

use super::section::Section;
use super::source::{Item, Node, join};

impl Section {
    /// Converts the table to JSON.
    pub(super) fn json(&self) -> serde_json::Map<String, serde_json::Value> {
        self.table
            .iter()
            .filter_map(|(key, node)| Some((key.clone(), self.json_of(&join(self.full_name(), key), node)?)))
            .collect()
    }

    fn json_of(&self, path: &str, node: &Node) -> Option<serde_json::Value> {
        Some(match &node.item {
            Item::Text(text) => text.value.clone().into(),
            Item::Flag(flag) => (*flag).into(),
            Item::Time(time) => time.clone().into(),
            Item::Integer(integer) => match (i64::try_from(*integer), u64::try_from(*integer)) {
                (Ok(integer), _) => integer.into(),
                (_, Ok(integer)) => integer.into(),
                _ => {
                    self.record(&node.location, path.to_owned(), "expected an integer of at most 64 bits".to_owned());
                    return None;
                }
            },
            Item::Float(float) => match serde_json::Number::from_f64(*float) {
                Some(number) => number.into(),
                None => {
                    self.record(&node.location, path.to_owned(), format!("expected a finite number, got {float}"));
                    return None;
                }
            },
            Item::Array(nodes) => {
                let values = nodes.iter().enumerate();
                values.filter_map(|(index, node)| self.json_of(&format!("{path}[{index}]"), node)).collect()
            }
            Item::Table(table) => {
                let values = table.iter();
                let values =
                    values.filter_map(|(key, node)| Some((key.clone(), self.json_of(&join(path, key), node)?)));
                serde_json::Value::Object(values.collect())
            }
        })
    }
}
