// The page Play: decoder and classifiers of one fold, run by ONNX Runtime in the page itself. docs/pages.py writes the
// page with the pictures for readers without this script, and the files that are loaded after a click.

const page = document.querySelector('.play')
const files = new URL('play/', document.baseURI)
const percent = (p) => `${Math.round(100 * p)} %`
const mix = (a, b, t) => a.map((x, i) => x + t * (b[i] - x))
const sum = (values) => values.reduce((a, b) => a + b, 0)
const oneHot = (k, n) => Array.from({ length: n }, (_, i) => Number(i === k))

let facts, names, sessions, grain // what is loaded
const asked = { mode: 'mix', a: 0, b: 1, w: [], t: 0, travels: 'both', grain: false } // what the reader has chosen

// -- elements ---------------------------------------------------------------------------------------------------------

function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value
    else made.setAttribute(name, value)
  }
  made.append(...children)
  return made
}

function choice(name, legend, options, chosen, then) {
  const buttons = options.map(([value, text]) => {
    const input = el('input', { type: 'radio', name, value, checked: value === chosen })
    input.addEventListener('change', () => then(value))
    return el('label', {}, input, text)
  })
  return el('fieldset', { className: 'play-choice' }, el('legend', {}, legend), ...buttons)
}

function picture(className, caption) {
  const canvas = el('canvas', { width: facts.size, height: facts.size, role: 'img' })
  const text = el('figcaption', {}, caption)
  return { canvas, text, figure: el('figure', { className }, canvas, text) }
}

function setSlider(slider, value) {
  slider.value = value
  slider.style.setProperty('--p', value) // how far the track is filled
}

function drawTile(canvas, sprite, i) {
  canvas.getContext('2d').drawImage(sprite, i * facts.size, 0, facts.size, facts.size, 0, 0, facts.size, facts.size)
}

function nameOf(i) {
  const k = facts.cases[i].class
  const nth = facts.cases.slice(0, i + 1).filter((c) => c.class === k).length
  return `${names[k]} ${nth}`
}

// -- the computation --------------------------------------------------------------------------------------------------

function wanted() {
  const { mode, a, b, w, t, travels } = asked
  if (mode === 'mix') {
    const c = facts.r[a].map((_, d) => sum(w.map((share, k) => share * facts.c[a][k][d])))
    return { c, r: facts.r[a], w }
  }
  const own = (i) => facts.c[i][facts.cases[i].class]
  const to = { c: travels === 'r' ? 0 : t, r: travels === 'c' ? 0 : t }
  const target = mix(...[a, b].map((i) => oneHot(facts.cases[i].class, names.length)), to.c)
  return { c: mix(own(a), own(b), to.c), r: mix(facts.r[a], facts.r[b], to.r), w: target }
}

async function run(name, inputs, output) {
  const { Tensor } = sessions.ort
  const feeds = Object.entries(inputs).map(([key, [values, dims]]) => [key, new Tensor('float32', values, dims)])
  return (await sessions[name].run(Object.fromEntries(feeds)))[output].data
}

async function compute({ c, r }) {
  const code = (values) => [Float32Array.from(values), [1, values.length]]
  const image = Float32Array.from(await run('decoder', { c: code(c), r: code(r) }, 'image'))
  if (asked.grain) image.forEach((v, i) => (image[i] = Math.min(1, Math.max(0, v + grain[asked.a][i]))))
  const input = { image: [image, [1, 1, facts.size, facts.size]] }
  const proposed = await run('proposed', input, 'probabilities')
  return { image, seen: { proposed, judge: await run('judge', input, 'probabilities') } }
}

// -- what is shown ----------------------------------------------------------------------------------------------------

function paint(canvas, image) {
  const context = canvas.getContext('2d')
  const pixels = context.createImageData(facts.size, facts.size)
  image.forEach((v, i) => pixels.data.set([255 * v, 255 * v, 255 * v, 255], 4 * i))
  context.putImageData(pixels, 0, 0)
}

const inWords = (p) =>
  names.map((name, k) => [p[k], name]).filter(([v]) => v >= 0.005).sort((x, y) => y[0] - x[0])
    .map(([v, name]) => `${percent(v)} ${name}`).join(', ')

function show(parts, target, { image, seen }, ms) {
  paint(parts.decoded.canvas, image)
  parts.decoded.canvas.setAttribute('aria-label', `decoded image: ${inWords(target)}`)
  parts.rows.forEach((row, k) => {
    setSlider(row.slider, target[k])
    row.slider.setAttribute('aria-valuetext', percent(target[k]))
    row.asked.textContent = percent(target[k])
    for (const who of ['proposed', 'judge']) {
      row[who].bar.style.width = `${100 * seen[who][k]}%`
      row[who].text.textContent = percent(seen[who][k])
    }
  })
  parts.time.textContent = `Redrawn in ${Math.round(ms)} ms, here in your browser.`
  page.dataset.redraws = Number(page.dataset.redraws || 0) + 1
  clearTimeout(parts.soon)
  const words = `Asked: ${inWords(target)}. Proposed sees ${inWords(seen.proposed)}; the swap classifier ${inWords(seen.judge)}.`
  parts.soon = setTimeout(() => (parts.said.textContent = words), 600) // for screen readers, once a movement has ended
}

function redrawer(parts) {
  let busy = false
  let again = false
  return async function redraw() {
    again = true
    if (busy) return
    busy = true
    while (again) {
      again = false
      const target = wanted()
      const began = performance.now()
      show(parts, target.w, await compute(target), performance.now() - began)
    }
    busy = false
  }
}

// -- controls ---------------------------------------------------------------------------------------------------------

function share(k, value) {
  const rest = sum(asked.w) - asked.w[k]
  asked.w = asked.w.map((v, i) => (i === k ? value : ((1 - value) * (rest > 0 ? v / rest : 1 / (names.length - 1)))))
}

function classRow(name, k, redraw) {
  const slider = el('input', { type: 'range', min: 0, max: 1, step: 0.01, 'aria-label': `share of ${name}` })
  slider.addEventListener('input', () => {
    share(k, Number(slider.value))
    redraw()
  })
  const view = (who) => {
    const bar = el('i')
    const text = el('span')
    const whole = el('div', { className: `play-seen ${who}` }, el('div', { className: 'track' }, bar), text)
    return { bar, text, whole }
  }
  const proposed = view('proposed')
  const judge = view('judge')
  const value = el('span')
  const row = el(
    'div', { className: 'play-class', style: `--colour: ${facts.classes[name]}` },
    el('b', {}, name), el('div', { className: 'play-asked' }, slider, value), proposed.whole, judge.whole,
  )
  return { row, slider, asked: value, proposed, judge }
}

function pad(redraw) {
  const dot = el('i')
  const label = 'Square of the four classes: arrow keys move the mixture'
  const square = el(
    'div', { className: 'play-pad', tabIndex: 0, role: 'application', 'aria-label': label },
    ...names.map((name) => el('span', {}, name)), dot,
  )
  names.forEach((name, k) => square.style.setProperty(`--c${k}`, facts.classes[name]))
  const at = () => [asked.w[1] + asked.w[3], asked.w[2] + asked.w[3]]
  const move = (u, v) => {
    const [x, y] = [u, v].map((z) => Math.min(1, Math.max(0, z)))
    asked.w = [(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y]
    redraw()
  }
  const follow = (event) => {
    const box = square.getBoundingClientRect()
    move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height)
  }
  square.addEventListener('pointerdown', (event) => {
    square.setPointerCapture(event.pointerId)
    follow(event)
  })
  square.addEventListener('pointermove', (event) => square.hasPointerCapture(event.pointerId) && follow(event))
  square.addEventListener('keydown', (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key]
    if (!by) return
    event.preventDefault()
    move(...at().map((z, i) => z + 0.05 * by[i]))
  })
  const figure = el('figure', { className: 'pad' }, square, el('figcaption', {}, 'drag: proportions of c'))
  return { figure, place: () => at().forEach((z, i) => dot.style.setProperty(['--x', '--y'][i], z)) }
}

function picker(name, legend, sprite, chosen, then) {
  const thumbs = facts.cases.map((c, i) => {
    const canvas = el('canvas', { width: facts.size, height: facts.size })
    drawTile(canvas, sprite, i)
    const label = `${nameOf(i)}, case ${c.id}`
    const input = el('input', { type: 'radio', name, checked: i === chosen, 'aria-label': label })
    input.addEventListener('change', () => then(i))
    return el('label', { style: `--colour: ${facts.classes[names[c.class]]}`, title: nameOf(i) }, input, canvas)
  })
  return el('fieldset', { className: 'play-picker' }, el('legend', {}, legend), el('div', {}, ...thumbs))
}

function path(redraw) {
  const slider = el('input', { type: 'range', min: 0, max: 1, step: 0.01, value: 0, 'aria-label': 'way from A to B' })
  const button = el('button', { type: 'button' }, 'Play')
  let playing = 0
  const set = (t) => {
    asked.t = t
    setSlider(slider, t)
    redraw()
  }
  const stop = () => {
    cancelAnimationFrame(playing)
    playing = 0
    button.textContent = 'Play'
  }
  const start = () => {
    const began = performance.now() - 4000 * asked.t
    const step = (now) => {
      const there = ((now - began) / 4000) % 2
      set(there > 1 ? 2 - there : there)
      playing = requestAnimationFrame(step)
    }
    playing = requestAnimationFrame(step)
    button.textContent = 'Pause'
  }
  button.addEventListener('click', () => (playing ? stop() : start()))
  slider.addEventListener('input', () => {
    stop()
    set(Number(slider.value))
  })
  const ways = [['both', 'c and r'], ['c', 'only c'], ['r', 'only r']]
  const what = choice('travels', 'What goes from A to B', ways, asked.travels, (value) => {
    asked.travels = value
    redraw()
  })
  const way = el('div', { className: 'play-way' }, button, 'A', slider, 'B')
  return { whole: el('div', { className: 'play-path' }, way, what), stop }
}

function noise(redraw) {
  const input = el('input', { type: 'checkbox' })
  input.addEventListener('change', () => {
    asked.grain = input.checked
    redraw()
  })
  return el('label', { className: 'play-noise' }, input, ' give the image the noise back that the decoder leaves out')
}

// -- the page ---------------------------------------------------------------------------------------------------------

function key() {
  const sample = (who) => el('i', { className: who })
  return el(
    'p', { className: 'play-key' }, el('span', {}, 'slider: asked for, the soft target'),
    el('span', {}, sample('proposed'), 'seen by the proposed classifier'),
    el('span', {}, sample('judge'), 'seen by the swap classifier'),
  )
}

// The original image of the case that `which` ('a' or 'b') stands for, and what changes it.
function original(which, sprite) {
  const parts = picture(`original ${which}`, '')
  const show = (i) => {
    asked[which] = i
    drawTile(parts.canvas, sprite, i)
    parts.canvas.setAttribute('aria-label', `original image: ${nameOf(i)}`)
    parts.text.textContent = `${asked.mode === 'mix' ? 'gives r' : which.toUpperCase()}: ${nameOf(i)}`
  }
  return { figure: parts.figure, show }
}

function build(sprite) {
  const parts = {
    decoded: picture('decoded', 'decoded'),
    said: el('p', { className: 'play-said', role: 'status' }),
    time: el('p', { className: 'play-time' }),
  }
  const draw = redrawer(parts)
  const redraw = () => {
    square?.place()
    return draw()
  }
  const square = names.length === 4 ? pad(redraw) : null // a square has four corners
  const way = path(redraw)
  const [a, b] = ['a', 'b'].map((which) => original(which, sprite))
  const pick = (of) => (i) => {
    of.show(i)
    redraw()
  }
  parts.rows = names.map((name, k) => classRow(name, k, redraw))
  const app = el('div', { className: 'play-app' })
  const mode = (value) => {
    way.stop()
    asked.mode = app.dataset.mode = value
    parts.rows.forEach((row) => (row.slider.disabled = value === 'path'))
    b.show(asked.b)
    pick(a)(asked.a)
  }
  const modes = [['mix', 'Mix classes'], ['path', 'Go from one case to another']]
  app.append(
    choice('mode', 'What to do', modes, asked.mode, mode),
    el('div', { className: 'play-stage' }, a.figure, parts.decoded.figure, square?.figure ?? '', b.figure),
    way.whole, key(), el('div', { className: 'play-classes' }, ...parts.rows.map((row) => row.row)), noise(redraw),
    picker('a', 'The case that is drawn', sprite, asked.a, pick(a)),
    picker('b', 'Case B', sprite, asked.b, pick(b)), parts.time, parts.said,
  )
  mode(asked.mode)
  return app
}

async function loadImage(name) {
  const image = new Image()
  image.src = new URL(name, files)
  await image.decode()
  return image
}

function grainOf(image) {
  const canvas = el('canvas', { width: image.width, height: image.height })
  const context = canvas.getContext('2d', { willReadFrequently: true })
  context.drawImage(image, 0, 0)
  return facts.cases.map((_, i) => {
    const { data } = context.getImageData(i * facts.size, 0, facts.size, facts.size)
    return Float32Array.from({ length: facts.size ** 2 }, (_, p) => (data[4 * p] / 255 - 0.5) * 2 * facts.grain)
  })
}

async function start(say) {
  say('Loading the runtime …')
  const ort = await import(new URL('ort.wasm.bundle.min.mjs', files))
  ort.env.wasm.numThreads = 1 // more would need headers that a plain web server does not send
  ort.env.wasm.wasmPaths = { wasm: new URL('ort-wasm-simd-threaded.wasm', files) }
  facts = await (await fetch(new URL('play.json', files))).json()
  names = Object.keys(facts.classes)
  sessions = { ort }
  for (const name of ['decoder', 'proposed', 'judge']) {
    say(`Loading the networks: ${name} …`)
    sessions[name] = await ort.InferenceSession.create(new URL(`${name}.onnx`, files).href)
  }
  grain = grainOf(await loadImage('grain.png'))
  asked.a = facts.strip.of
  asked.b = facts.cases.findIndex((c) => c.class === 0)
  asked.w = facts.strip.asked[0]
  return build(await loadImage('lesions.png'))
}

function offer() {
  const text = `Start: loads ${page.dataset.megabytes} MB, once`
  const button = el('button', { type: 'button', className: 'play-start' }, text)
  const said = el('p', { role: 'status' }, 'Runs in your browser. Nothing is sent anywhere.')
  button.addEventListener('click', async () => {
    button.disabled = true
    try {
      page.replaceChildren(await start((text) => (said.textContent = text)))
      page.querySelector('input').focus()
    } catch (problem) {
      said.textContent = `This browser cannot run the networks (${problem.message}). The pictures below stay.`
    }
  })
  page.prepend(el('div', { className: 'play-offer' }, button, said))
}

if (page?.dataset.megabytes) offer()
