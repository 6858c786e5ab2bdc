//! A person's browser: a headless Chromium that trusts what `devenv trust install` made it trust, and nothing else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::e2e::{free_port, output, program};

/// A browser with one window; it ends when this is dropped.
pub(crate) struct Browser {
    driver: Child,
    session: String,
}

/// How long a page may take until it shows what is looked for.
const PAGE: Duration = Duration::from_secs(60);
/// The key under which WebDriver names an element (W3C WebDriver, 12.).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

impl Browser {
    /// Starts one for the user whose home this is. No flag has anything to do with certificates.
    pub(crate) fn start(home: &Path) -> Self {
        let port = free_port();
        let driver = program("chromedriver")
            .arg(format!("--port={port}"))
            .env("HOME", home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is there: scripts/test installs it");
        let mut browser = Self {
            driver,
            session: format!("http://127.0.0.1:{port}"),
        };
        let deadline = Instant::now() + PAGE;
        while !browser.is_ready() {
            assert!(Instant::now() < deadline, "chromedriver doesn't answer");
            std::thread::sleep(Duration::from_millis(100));
        }
        let profile = home.join("profile");
        let arguments = [
            "--headless=new",
            "--no-sandbox", // the tests may run as root
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1280,900",
            &format!("--user-data-dir={}", profile.display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": which("chromium"), "args": arguments},
        }}});
        let session = browser.post("/session", &wanted);
        let id = session["sessionId"].as_str().unwrap().to_owned();
        browser.session = format!("{}/session/{id}", browser.session);
        browser
    }

    fn is_ready(&self) -> bool {
        let asked = program("curl")
            .args(["--silent", "--fail", &format!("{}/status", self.session)])
            .output()
            .unwrap();
        String::from_utf8_lossy(&asked.stdout).contains("\"ready\":true")
    }

    /// Opens an address; an untrusted certificate is an error here.
    pub(crate) fn open(&self, address: &str) {
        self.post("/url", &json!({"url": address}));
    }

    /// Types into the element of a selector.
    pub(crate) fn type_into(&self, selector: &str, text: &str) {
        let element = self.element(selector);
        self.post(&format!("/element/{element}/value"), &json!({"text": text}));
    }

    /// Clicks the element of a selector.
    pub(crate) fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.post(&format!("/element/{element}/click"), &json!({}));
    }

    /// Waits until the page shows a text.
    pub(crate) fn wait_for_text(&self, text: &str) {
        let deadline = Instant::now() + PAGE;
        loop {
            let script = json!({"script": "return document.body ? document.body.innerText : ''", "args": []});
            let shown = self.post("/execute/sync", &script);
            let shown = shown.as_str().unwrap_or_default();
            if shown.contains(text) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the page doesn't show `{text}` but:\n{shown}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// A picture of the window, as PNG, for whoever asked for pictures (`DEVENV_TEST_PICTURES` names a folder).
    pub(crate) fn picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("DEVENV_TEST_PICTURES").map(PathBuf::from) else {
            return;
        };
        let shown = self.ask("GET", "/screenshot", None).unwrap();
        let engine = base64::engine::general_purpose::STANDARD;
        let bytes = engine.decode(shown.as_str().unwrap()).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    }

    fn element(&self, selector: &str) -> String {
        let deadline = Instant::now() + PAGE;
        let wanted = json!({"using": "css selector", "value": selector});
        loop {
            match self.ask("POST", "/element", Some(&wanted)) {
                Ok(found) => return found[ELEMENT].as_str().unwrap().to_owned(),
                Err(said) => assert!(Instant::now() < deadline, "no {selector}: {said}"),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.ask("POST", path, Some(body))
            .unwrap_or_else(|said| panic!("{path} {body}: {said}"))
    }

    /// One command; what it gave, or what the driver says against it.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let address = format!("{}{path}", self.session);
        let mut arguments: Vec<OsString> =
            ["--silent", "--show-error", "--request", method, &address]
                .map(Into::into)
                .to_vec();
        let body = body.map(ToString::to_string);
        if let Some(body) = body {
            arguments
                .extend(["--header", "content-type: application/json", "--data"].map(Into::into));
            arguments.push(body.into());
        }
        let asked = program("curl").args(arguments).output().unwrap();
        let answer = String::from_utf8_lossy(&asked.stdout).into_owned();
        let mut answer: Value = serde_json::from_str(&answer).map_err(|_| answer)?;
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"])),
            None => Ok(answer["value"].take()),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The window first: the driver's end alone would leave it.
        let _ = program("curl")
            .args(["--silent", "--request", "DELETE", &self.session])
            .output();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn which(name: &str) -> String {
    output("which", &[name]).trim().to_owned()
}
