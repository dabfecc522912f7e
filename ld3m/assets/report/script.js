"use strict";
(() => {
  const find = (id) => document.getElementById(id);

  // --- images: every canvas shows one image of one frame ---------------------------------------------------

  const holder = find("frames");
  if (holder) {
    const frames = [...holder.querySelectorAll("img")];
    const columns = Number(holder.dataset.columns);
    const rows = Number(holder.dataset.rows);
    const small = Number(holder.dataset.small);
    const unit = holder.dataset.unit; // what frames are numbered by: iteration, or step of a sampling
    const slider = find("iteration");
    const play = find("play");
    const tiles = [...document.querySelectorAll(".tile canvas")];
    const real = find("real"); // laid out like a frame; null if the run kept none
    const iterationOf = (frame) => Number(frame.dataset.iteration).toLocaleString("en");

    const draw = (canvas, frame, index) => {
      const width = frame.naturalWidth / columns;
      const height = frame.naturalHeight / rows;
      canvas.width = width;
      canvas.height = height;
      canvas.classList.toggle("pixels", width <= small);
      const left = (index % columns) * width;
      const top = Math.floor(index / columns) * height;
      canvas.getContext("2d").drawImage(frame, left, top, width, height, 0, 0, width, height);
    };
    const now = () => frames[Number(slider.value)];

    const show = async () => {
      const frame = now();
      find("at").textContent = iterationOf(frame);
      slider.setAttribute("aria-valuetext", `${unit} ${iterationOf(frame)}`);
      await frame.decode();
      if (frame !== now()) return; // the slider has moved on meanwhile
      for (const canvas of tiles) {
        draw(canvas, frame, Number(canvas.dataset.index));
        canvas.setAttribute("aria-label", `${canvas.dataset.name}, ${unit} ${iterationOf(frame)}`);
      }
      if (large.open) enlarge();
    };
    slider.addEventListener("input", show);

    let timer = 0;
    const pause = () => {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    };
    const step = (by) => {
      const to = Math.min(frames.length - 1, Math.max(0, Number(slider.value) + by));
      slider.value = to;
      show();
      return to;
    };
    play.addEventListener("click", () => {
      if (timer) return pause();
      if (now() === frames.at(-1)) step(-frames.length);
      play.textContent = "Pause";
      timer = setInterval(() => {
        if (step(1) === frames.length - 1) pause();
      }, 300);
    });
    slider.addEventListener("pointerdown", pause);
    slider.addEventListener("keydown", pause);

    for (const canvas of document.querySelectorAll("[data-end]")) {
      const frame = { first: frames[0], last: frames.at(-1), real }[canvas.dataset.end];
      frame.decode().then(() => draw(canvas, frame, Number(canvas.dataset.index)));
    }

    // --- one image, large ----------------------------------------------------------------------------------

    const large = find("large");
    let chosen = 0;
    const enlarge = () => {
      const { index, name } = tiles[chosen].dataset;
      find("large-name").textContent = name;
      for (const [id, frame] of [["large-first", frames[0]], ["large-now", now()]]) {
        const canvas = find(id);
        draw(canvas, frame, Number(index));
        canvas.setAttribute("aria-label", `${name}, ${unit} ${iterationOf(frame)}`);
        canvas.nextElementSibling.textContent = `${unit[0].toUpperCase()}${unit.slice(1)} ${iterationOf(frame)}`;
      }
      if (real) {
        draw(find("large-real"), real, Number(index));
        find("large-real").setAttribute("aria-label", `${name}, a real image`);
      }
      find("large-first").parentElement.hidden = now() === frames[0];
      find("announced").textContent = `${name}, ${unit} ${iterationOf(now())}`;
    };
    const choose = (index) => {
      chosen = (index + tiles.length) % tiles.length;
      enlarge();
    };
    tiles.forEach((canvas, index) => {
      canvas.parentElement.addEventListener("click", () => {
        large.showModal();
        choose(index);
      });
    });
    find("close").addEventListener("click", () => large.close());
    find("previous").addEventListener("click", () => choose(chosen - 1));
    find("next").addEventListener("click", () => choose(chosen + 1));
    large.addEventListener("click", (event) => {
      if (event.target !== large) return;
      const box = large.getBoundingClientRect();
      const inside = event.clientX > box.left && event.clientX < box.right && event.clientY > box.top && event.clientY < box.bottom;
      if (!inside) large.close();
    });
    large.addEventListener("close", () => tiles[chosen].parentElement.focus());
    large.addEventListener("keydown", (event) => {
      const moves = {
        ArrowLeft: () => choose(chosen - 1),
        ArrowRight: () => choose(chosen + 1),
        ArrowUp: () => step(1),
        ArrowDown: () => step(-1),
      };
      if (!moves[event.key]) return;
      event.preventDefault();
      moves[event.key]();
    });

    show();
  }

  // --- tables: on a narrow screen each row is a block, in which every value stands beside its column's name ---

  for (const table of document.querySelectorAll(".wide table")) {
    const names = [...table.querySelectorAll("thead th")].map((head) => head.textContent);
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, index) => (cell.dataset.column = names[index]));
    }
    table.classList.add("stacks");
  }

  // --- curves: a guide line, and the values at it in words ------------------------------------------------

  for (const plot of document.querySelectorAll(".plot[data-values]")) {
    const values = JSON.parse(plot.dataset.values);
    const svg = plot.querySelector("svg");
    const guide = plot.querySelector(".guide");
    const output = plot.parentElement.querySelector("output");
    let at = values.length - 1;
    const read = (to) => {
      at = Math.min(values.length - 1, Math.max(0, to));
      const [x, text] = values[at];
      guide.setAttribute("transform", `translate(${x} 0)`);
      guide.removeAttribute("hidden");
      output.textContent = text;
    };
    plot.addEventListener("pointermove", (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const gaps = values.map(([x]) => Math.abs(x - point.x));
      read(gaps.indexOf(Math.min(...gaps)));
    });
    plot.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: values.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      read(to);
    });
    plot.addEventListener("focus", () => read(at));
  }
})();
