use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::etcd::config::tests::settings;
use crate::http::Client;
use crate::inventory::Nobody;

/// A service that writes down what is asked of it, each time with the configuration that lies there.
struct Scribe {
    running: bool,
    config: PathBuf,
    asked: Rc<RefCell<Vec<(&'static str, String)>>>,
}

impl Scribe {
    fn note(&self, what: &'static str) -> anyhow::Result<()> {
        let config = fs::read_to_string(&self.config).unwrap();
        self.asked.borrow_mut().push((what, config));
        Ok(())
    }
}

impl Service for Scribe {
    fn is_running(&self) -> anyhow::Result<bool> {
        Ok(self.running)
    }

    fn restart(&self) -> anyhow::Result<()> {
        self.note("restart")
    }

    fn stop(&self) -> anyhow::Result<()> {
        self.note("stop")
    }
}

#[test]
fn etcd_never_runs_with_an_older_configuration_than_the_one_that_lies_there() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("etcd.yaml");
    let asked = Rc::default();
    let launch = |running| {
        let service = Scribe {
            running,
            config: config.clone(),
            asked: Rc::clone(&asked),
        };
        let site = Site {
            store: None,
            inventory: Box::new(Nobody),
            gateway: Gateway::new(Client::new(&crate::http::Settings::default()).unwrap()),
            service: Box::new(service),
            settings: settings(),
            config: config.clone(),
            mark: folder.path().join("etcd.json"),
            begin: Instant::now(),
        };
        assert_eq!(site.launch(&Launch::Resume).unwrap(), None);
        asked.take()
    };
    let new = config::render(&settings(), &Launch::Resume);
    let old = "older".to_owned();
    fs::write(&config, &old).unwrap();
    assert_eq!(launch(true), [("stop", old), ("restart", new.clone())]);
    // Killed after the file and before the restart, the next run finds etcd stopped.
    assert_eq!(launch(false), [("restart", new.clone())]);
    assert_eq!(launch(true), []);
}
