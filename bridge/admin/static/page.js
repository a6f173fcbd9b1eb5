// What the page does in the browser beyond htmx: local times, the chart, copying, pausing. Nothing here evaluates text.
(() => {
  "use strict";

  // --- times in the time zone of who looks -----------------------------------------------------------------------

  const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });

  function localize(root) {
    for (const one of root.querySelectorAll("time[datetime]:not([title])")) {
      const moment = new Date(one.dateTime);
      one.title = `${day.format(moment)} (${one.dateTime})`;
      if (one.dataset.as === "clock") one.textContent = clock.format(moment);
      if (one.dataset.as === "full") one.textContent = day.format(moment);
    }
  }

  // --- the chart -------------------------------------------------------------------------------------------------

  let chart = null;

  function draw() {
    const place = document.getElementById("chart");
    const data = document.getElementById("chart-data");
    if (!place || !data || !window.uPlot) return;
    const [minutes, statuses, clicks] = JSON.parse(data.dataset.points);
    const points = [minutes, statuses, clicks];
    if (chart) {
      chart.setData(points);
      return;
    }
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const series = (label, name, fill) => ({
      label,
      stroke: colour(name),
      fill: fill ? colour(fill) : undefined,
      width: 2,
      paths: uPlot.paths.spline(),
      points: { show: false },
      value: (_, count) => (count == null ? "–" : String(count)),
    });
    chart = new uPlot(
      {
        width: place.clientWidth,
        height: 240,
        cursor: { y: false, drag: { x: false, y: false } },
        scales: { y: { range: (_, __, most) => [0, Math.max(5, most * 1.1)] } },
        axes: [
          { ...axis, values: (_, marks) => marks.map((one) => new Date(one * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" })) },
          { ...axis, size: 46, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000] },
        ],
        series: [
          { value: (_, at) => (at == null ? "–" : new Date(at * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" })), label: "minute" },
          series("statuses", "--accent", "--accent-soft"),
          series("clicks", "--waiting"),
        ],
      },
      points,
      place,
    );
  }

  function redraw() {
    if (chart) chart.destroy();
    chart = null;
    draw();
  }

  new ResizeObserver(() => {
    const place = document.getElementById("chart");
    if (chart && place.clientWidth && chart.width !== place.clientWidth) chart.setSize({ width: place.clientWidth, height: 240 });
  }).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // --- what is said aloud: only what is new ------------------------------------------------------------------------

  function say(text) {
    const place = document.getElementById("say");
    if (place.textContent !== text) place.textContent = text;
  }

  let summary = document.querySelector("[data-say]")?.dataset.say;

  function sayNews() {
    const now = document.querySelector("[data-say]")?.dataset.say;
    if (now && now !== summary) say(now);
    summary = now;
  }

  // --- copying, pausing, going on ------------------------------------------------------------------------------------

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const place = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(place.textContent);
      button.textContent = "Copied";
      say("Copied");
    } catch {
      // Without HTTPS a browser does not let us: then it is selected, ready for Ctrl+C.
      getSelection().selectAllChildren(place);
      button.textContent = "Press Ctrl+C";
    }
  });

  const pause = document.getElementById("pause");
  const isPaused = () => pause?.getAttribute("aria-pressed") === "true";
  pause?.addEventListener("click", () => {
    pause.setAttribute("aria-pressed", String(!isPaused()));
    pause.textContent = isPaused() ? "Paused" : "Pause";
    if (!isPaused()) htmx.trigger("#poll", "again");
  });

  document.querySelector("[data-go-on]")?.submit();

  // A link on another site brings no cookie along. Asked from here, the page knows whether somebody is logged in.
  if (document.querySelector("form[data-login]"))
    fetch(location.href).then((answer) => { if (answer.redirected) location.replace(answer.url); }, () => {});

  // --- htmx --------------------------------------------------------------------------------------------------------

  const MOST = 200; // rows that stay in the live view
  document.addEventListener("htmx:beforeRequest", (event) => {
    const polls = event.detail.elt.matches("#poll, #now");
    if (polls && (document.hidden || (event.detail.elt.id === "poll" && isPaused()))) event.preventDefault();
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    // Asked before the pause began; the next question, after it, brings the same.
    if (event.detail.requestConfig.elt.id === "poll" && isPaused()) event.detail.shouldSwap = false;
  });
  const away = (is) => { document.getElementById("away").hidden = !is; };
  document.addEventListener("htmx:sendError", () => away(true));
  document.addEventListener("htmx:timeout", () => away(true));
  document.addEventListener("htmx:afterOnLoad", () => away(false));
  document.addEventListener("htmx:load", (event) => localize(event.detail.elt.parentElement ?? document));
  document.addEventListener("htmx:afterSettle", () => {
    localize(document);
    draw();
    sayNews();
    const feed = document.getElementById("feed");
    while (feed && feed.children.length > MOST) feed.lastElementChild.remove();
  });

  localize(document);
  draw();
  document.getElementById("note")?.focus();
})();
