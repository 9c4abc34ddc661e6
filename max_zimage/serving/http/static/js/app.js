// The page put together: what the server can do, the form, what is drawn.

import { ApiError, capabilities, health, keyOf, setKey } from "./api.js";
import { $, announce } from "./dom.js";
import { FieldError } from "./fields.js";
import { Form } from "./form.js";
import { Job } from "./jobs.js";
import { Stage } from "./stage.js";

const THEMES = { auto: "as the system", light: "light", dark: "dark" };
const SIGNS = { auto: "◐", light: "☀", dark: "☾" };
const LOOK = 2000;
/** What the Esc key empties or closes by itself. */
const OWN_ESCAPE = "input[type=search], input[list], select";

let form = null;
let model = "";
const jobs = new Set();
const stage = new Stage({
  prompt: (text) => {
    $("prompt").value = text;
    $("prompt").focus();
  },
  revised: (text) => {
    $("enhance").checked = false;
    $("prompt").value = text;
    announce("The prompt as it was written out is in the form.");
    $("prompt").focus();
  },
  start: (picture) => {
    form?.start.use(new File([picture.blob], "picture", { type: picture.blob.type }));
    $("start-title").scrollIntoView({ block: "start" });
  },
  seed: (seed) => {
    form?.useSeed(seed);
    announce(`Seed ${seed} is kept.`);
    $("seed").focus();
  },
  settings: ({ request, isEdit }) => {
    form?.apply(request);
    const said = isEdit ? "The settings are in the form. It was drawn from a start image, which the history does not hold." : "The settings are in the form.";
    $("read-said").textContent = isEdit ? said : "";
    announce(said);
    $("prompt").focus();
  },
});

async function connect() {
  for (;;) {
    try {
      const found = await capabilities();
      model = found.model;
      form = new Form(found);
      form.start.onSettings = (request) => form.apply(request);
      $("draw").disabled = false;
      stage.suggest(model);
      document.title = `${model} · max_zimage`;
      break;
    } catch (error) {
      if (error.status === 401) await askForKey(keyOf() ? "That was not the key." : "");
      else {
        if (!(error instanceof ApiError)) throw error;
        state("off", error.message);
        await new Promise((resolve) => setTimeout(resolve, LOOK));
      }
    }
  }
  $("key-open").hidden = !keyOf();
  await watch();
}

/** Say whether the model is there, and look again until it is. */
async function watch() {
  const found = await health();
  const said = { ready: model, loading: `${model} is being loaded`, restarting: `${model} starts again`, ending: "The server ends", unreachable: "The server cannot be reached" };
  state({ ready: "on", loading: "wait", restarting: "wait" }[found] ?? "off", said[found] ?? found);
  setTimeout(watch, found === "ready" ? 5 * LOOK : LOOK);
}

function state(kind, text) {
  $("state-dot").className = `dot ${kind}`;
  if ($("state").textContent !== text) $("state").textContent = text;
}

async function askForKey(problem) {
  const dialog = $("key-dialog");
  Object.assign($("key-error"), { textContent: problem, hidden: !problem });
  $("key").value = "";
  let isGiven = true;
  const leave = () => {
    isGiven = false; // the Esc key: the key stays what it was
  };
  dialog.addEventListener("cancel", leave);
  dialog.showModal();
  const closed = new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.removeEventListener("cancel", leave);
      resolve(isGiven ? setKey($("key").value.trim()) : "");
    }, { once: true });
  });
  const wrong = await closed;
  if (wrong) await askForKey(wrong);
}

async function draw() {
  if (!form) return;
  let request;
  form.clearErrors();
  try {
    request = await form.request();
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    form.showError(error.message, error.param);
    return;
  }
  const job = new Job(request, model, (changed) => stage.note(changed));
  jobs.add(job);
  stage.begin(job);
  const clock = setInterval(() => stage.note(job), 100);
  await job.run();
  clearInterval(clock);
  jobs.delete(job);
  if (job.status === "cancelled") announce("The draw is cancelled.");
  if (job.error?.status === 401) {
    await askForKey("The server wants another key.");
    return;
  }
  if (!(job.error instanceof ApiError)) return;
  if (job.error.status === 400) stage.drop(job); // it never began: what is wrong stands in the form
  form.showError(job.error.message, job.error.param);
}

function theme() {
  const now = document.documentElement.dataset.theme ?? "auto";
  $("theme-now").textContent = THEMES[now];
  $("theme-sign").textContent = SIGNS[now];
  $("theme").title = `Colours: ${THEMES[now]}`;
}

$("theme").addEventListener("click", () => {
  const order = Object.keys(THEMES);
  const next = order[(order.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % order.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("theme", next);
  } catch {
    // Storage is off: it holds until the page is left.
  }
  theme();
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
$("keys-open").addEventListener("click", () => $("keys-dialog").showModal());
$("key-open").addEventListener("click", async () => {
  await askForKey("");
  announce("The key is changed.");
});
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    draw();
  } else if (event.key === "Escape" && !event.isComposing && !event.target.matches?.(OWN_ESCAPE)) {
    const job = stage.shown instanceof Job && !stage.shown.isOver ? stage.shown : [...jobs].at(-1);
    if (job) job.cancel();
  }
});
theme();
await Promise.all([stage.load(), connect()]);
