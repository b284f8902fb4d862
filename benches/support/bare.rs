//! What a script would do: some tasks, one client, no memory of anything. Not every bench needs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use cohort_bridge::flagsmith::MAX_ROWS;
use reqwest::Method;

use super::support::{Ids, identifier};

/// One identity a call; calls a second.
pub async fn bare(url: &str, calls: usize, in_flight: usize) -> f64 {
    let call = |number| {
        format!(
            r#"{{"identifier":"{}","traits":[{{"trait_key":"mixpanel_cohort_bench_bare","trait_value":true}}]}}"#,
            identifier(Ids::Sequential, number)
        )
    };
    loop_over(
        Method::POST,
        format!("{url}identities/"),
        calls,
        in_flight,
        call,
    )
    .await
}

/// A hundred rows a call; rows a second.
#[allow(dead_code)]
pub async fn bare_bulk(url: &str, rows: usize, in_flight: usize) -> f64 {
    let call = |number| {
        let rows: Vec<_> = (number * MAX_ROWS..(number + 1) * MAX_ROWS)
            .map(|number| {
                format!(
                    r#"{{"identity":{{"identifier":"{}"}},"trait_key":"mixpanel_cohort_bench_bare","trait_value":true}}"#,
                    identifier(Ids::Sequential, number)
                )
            })
            .collect();
        format!("[{}]", rows.join(","))
    };
    let calls = rows / MAX_ROWS;
    let url = format!("{url}traits/bulk/");
    loop_over(Method::PUT, url, calls, in_flight, call).await * MAX_ROWS as f64
}

async fn loop_over(
    method: Method,
    url: String,
    calls: usize,
    in_flight: usize,
    body: impl Fn(usize) -> String + Copy + Send + 'static,
) -> f64 {
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(in_flight)
        .no_proxy()
        .build()
        .expect("a client");
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let tasks: Vec<_> = (0..in_flight)
        .map(|_| {
            let (client, next) = (client.clone(), Arc::clone(&next));
            let (method, url) = (method.clone(), url.clone());
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= calls {
                        break;
                    }
                    let answer = client
                        .request(method.clone(), &url)
                        .header("x-environment-key", "ser.server-key")
                        .header("content-type", "application/json")
                        .header("accept", "application/json")
                        .body(body(number))
                        .send()
                        .await
                        .expect("the stand-in answers");
                    assert_eq!(answer.status(), 200);
                    answer.bytes().await.expect("the stand-in answers");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    calls as f64 / begun.elapsed().as_secs_f64()
}
