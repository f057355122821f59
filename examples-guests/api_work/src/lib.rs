//! A component that exports an interface of its own, `acme:work/api`, which others import.

wit_bindgen::generate!({ world: "work" });

use exports::acme::work::api::{Guest, Job, Problem};

struct Work;
export!(Work);

impl Guest for Work {
    fn handle(job: Job) -> Result<String, Problem> {
        match &*job.target {
            "/" => Err(Problem::Empty),
            // Until the deadline.
            "/forever" => loop {
                std::hint::spin_loop();
            },
            target => Ok(format!("Working on {target}, {} tries", job.tries)),
        }
    }

    fn title(text: String) -> Result<String, String> {
        let first = text.chars().next().ok_or("there is no text")?;
        Ok(first.to_uppercase().chain(text.chars().skip(1)).collect())
    }

    fn reverse(mut data: Vec<u8>) -> Vec<u8> {
        data.reverse();
        data
    }

    fn sort(mut data: Vec<u8>) -> Result<Vec<u8>, Problem> {
        data.sort_unstable();
        Ok(data)
    }
}
