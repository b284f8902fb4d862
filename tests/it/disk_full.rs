//! A ledger on a disk that runs full, and has room again.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::support::fast_temp_dir;
use crate::support::pages::{key, page_without_info, people};
use crate::support::process::{Process, serve_variables};
use crate::support::service::{Answer, PASSWORD, USER, client, stand_in};
use crate::support::shared_ledger;

/// A file system of some megabytes; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Result<Self, String> {
        let folder = fast_temp_dir();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(folder.path())
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(SmallDisk(folder))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves no byte.
    fn fill(&self) {
        let mut filler = File::create(self.path().join("filler")).unwrap();
        for size in [64 * 1024, 1] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A disk that stays mounted is no reason to fail.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

async fn post(process: &Process, people: &[String]) -> Answer {
    let request = client()
        .post(process.webhook_url())
        .basic_auth(USER, Some(PASSWORD))
        .body(page_without_info("add_members", "c", people).to_string());
    Answer::of(request.send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_our_own_trouble_and_passes() {
    if shared_ledger::is_wanted() {
        // The disk is not its own there.
        return;
    }
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(why) => {
            println!("skipped: no small disk can be mounted here ({why})");
            return;
        }
    };
    let stand_in = stand_in();
    let variables = serve_variables(&disk.path().join("ledger.db"), &stand_in.url());
    let mut process = Process::serve(&variables).await;
    let mut acknowledged = Vec::new();

    for round in 0..3 {
        let people = people(&format!("before{round}-"), 50);
        assert_eq!(post(&process, &people).await.status, 200);
        acknowledged.extend(people);
        disk.fill();
        let mut refusals = 0;
        // The log that SQLite has already may take a few more pages.
        for n in 0..400 {
            let people = people_of(round, n);
            let answer = post(&process, &people).await;
            match answer.status {
                200 => acknowledged.extend(people),
                503 => {
                    assert_eq!(answer.json()["error"]["code"], 503);
                    assert_eq!(answer.json()["action"], "add_members");
                    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
                    refusals += 1;
                }
                other => panic!("{other} on a full disk: {answer:?}"),
            }
            if refusals == 10 {
                break;
            }
        }
        assert_eq!(refusals, 10, "the disk was never full");
        assert!(process.is_running());
        assert_eq!(process.get("/livez").await.status, 200);

        disk.make_room();
        let people = people_of(round, 1_000);
        let answer = post(&process, &people).await;
        assert_eq!(answer.status, 200, "there is room again: {answer:?}");
        acknowledged.extend(people);
    }
    process.settled().await;
    for person in &acknowledged {
        let traits = stand_in.identity(person).unwrap_or_default();
        assert!(traits.contains_key(&key("c")), "{person} is lost");
    }
    process.terminate();
    assert_eq!(process.ended().await, Some(0));
}

fn people_of(round: usize, n: usize) -> Vec<String> {
    people(&format!("full{round}-{n}-"), 40)
}
