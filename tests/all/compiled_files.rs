//! Compiled files are found again, and one that is not what the host wrote is never used.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use wasmcage_tests::{TestCage, component, require_superuser, unique_name};

/// A component that no other test has, so that its compiled file is this test's own.
fn component_of_this_test() -> Vec<u8> {
    let text = r#"(component
        (core module $m (func (export "answer") (result i32) i32.const 42) (@custom "NAME" "") )
        (core instance $i (instantiate $m))
        (func (export "answer") (result s32) (canon lift (core func $i "answer"))))"#;
    component(&text.replace("NAME", &format!("{}-{}", unique_name("unique"), std::process::id())))
}

/// The compiled file of a component, or the file with its hash.
fn entry(cache: &Path, bytes: &[u8], extension: &str) -> PathBuf {
    use sha2::Digest as _;
    let hash: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let entries = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let mut found = entries.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(&hash[..40]) && name.ends_with(extension)
    });
    found.next().unwrap_or_else(|| panic!("no {extension} file for {hash} in {}", cache.display()))
}

fn files(bytes: &[u8]) -> (PathBuf, PathBuf) {
    let cache = wasmcage_tests::cache();
    (entry(&cache, bytes, "cwasm"), entry(&cache, bytes, "sha256"))
}

async fn load(bytes: &[u8]) {
    let cage = TestCage::new().file("answer", bytes).start().await;
    cage.swapped("answer", None).await;
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compiled_file_is_used_again() {
    let bytes = component_of_this_test();
    load(&bytes).await;
    let (compiled, _) = files(&bytes);
    let made = fs::metadata(&compiled).unwrap().modified().unwrap();
    load(&bytes).await;
    assert_eq!(fs::metadata(&compiled).unwrap().modified().unwrap(), made);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_one_is_made_anew_under_another_inode() {
    let bytes = component_of_this_test();
    load(&bytes).await;
    let (compiled, _) = files(&bytes);
    let mut content = fs::read(&compiled).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 0xff;
    fs::write(&compiled, &content).unwrap();
    let inode = fs::metadata(&compiled).unwrap().ino();
    // Kept open, as a mapping would keep it: what is written later must not be written here.
    let mut kept = fs::File::open(&compiled).unwrap();
    load(&bytes).await;
    let (compiled, _) = files(&bytes);
    assert_ne!(fs::metadata(&compiled).unwrap().ino(), inode);
    let mut untouched = Vec::new();
    kept.read_to_end(&mut untouched).unwrap();
    assert!(untouched == content, "the old file was written to");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_somebody_else_vouched_for_is_not_code() {
    let bytes = component_of_this_test();
    load(&bytes).await;
    let (compiled, sum) = files(&bytes);
    // Well-formed as an entry, and still no code of this host's wasmtime.
    use sha2::Digest as _;
    let foreign = b"not machine code";
    fs::write(&compiled, foreign).unwrap();
    fs::write(&sum, sha2::Sha256::digest(foreign).iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        .unwrap();
    load(&bytes).await;
    let (compiled, _) = files(&bytes);
    assert_ne!(fs::read(compiled).unwrap(), foreign);
}

/// A component of its own whose function `answer` gives a number.
fn answering(number: u32) -> Vec<u8> {
    let text = format!(
        r#"(component
            (core module $m (func (export "answer") (result i32) i32.const {number}) (@custom "{}" "") )
            (core instance $i (instantiate $m))
            (func (export "answer") (result s32) (canon lift (core func $i "answer"))))"#,
        unique_name("unique")
    );
    component(&text)
}

async fn check_answer(cache: &Path, bytes: &[u8], expected: u32) -> String {
    let cage = TestCage::new().cache(cache).file("module", bytes).start().await;
    cage.swapped("module", None).await;
    assert_eq!(cage.call("module.answer", serde_json::json!([])).await.unwrap(), expected);
    cage.log()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_written_one_is_no_entry() {
    let bytes = component_of_this_test();
    load(&bytes).await;
    let (_, sum) = files(&bytes);
    fs::remove_file(sum).unwrap();
    load(&bytes).await;
    files(&bytes);
}

mod as_superuser {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn machine_code_that_another_user_has_planted_is_never_run() {
        const NOBODY: Option<u32> = Some(65_534);
        require_superuser();
        let scratch = tempfile::tempdir().unwrap();
        let (ours, theirs) = (answering(42), answering(13));
        // Well-formed code for the name of another component, with the right sum.
        let plant = |cache: &Path| {
            for extension in ["cwasm", "sha256"] {
                let find = |bytes: &[u8]| entry(cache, bytes, extension);
                let (from, to) = (find(&theirs), find(&ours));
                fs::remove_file(&to).unwrap();
                fs::copy(from, &to).unwrap();
                chown(&to, NOBODY, NOBODY).unwrap();
            }
        };
        for whole_directory in [false, true] {
            let cache = scratch.path().join(format!("cache-{whole_directory}"));
            check_answer(&cache, &theirs, 13).await;
            check_answer(&cache, &ours, 42).await;
            plant(&cache);
            if whole_directory {
                chown(&cache, NOBODY, NOBODY).unwrap();
            }
            let log = check_answer(&cache, &ours, 42).await;
            assert_eq!(log.contains("components are compiled at each start"), whole_directory, "{log}");
        }
        // The planted code would have been run, had it been this user's own.
        let cache = scratch.path().join("own");
        check_answer(&cache, &theirs, 13).await;
        check_answer(&cache, &ours, 42).await;
        plant(&cache);
        for extension in ["cwasm", "sha256"] {
            chown(entry(&cache, &ours, extension), Some(0), Some(0)).unwrap();
        }
        check_answer(&cache, &ours, 13).await;
    }
}
