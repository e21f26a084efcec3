-- depends: 0003_identity
-- A ticket stands only for as long as the member on whose behalf it was given is one: looked up live, as for users.
set role onbrand_definer;

-- The brand of this session's ticket; null once its member is no member (any more), and then the wall shows nothing.
create function private.ticket_brand() returns text
language plpgsql stable security definer set search_path = '' as $$
declare claims jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
begin
  return (select bu.brand_id from app.brand_users bu
    where bu.brand_id = claims ->> 'brand_id' and bu.user_id = (claims ->> 'on_behalf_of')::uuid);
end $$;

create or replace function private.acts_in(b text) returns boolean
language sql stable security definer set search_path = '' as $$
  select case current_setting('role', true)
    when 'authenticated' then b = any (private.my_brands())
    when 'brand_system' then b = private.ticket_brand()
    else false end
$$;

reset role;
grant execute on function private.ticket_brand() to brand_system, onbrand_owner;

set role onbrand_owner;

-- The users' wall says coalesce(..., false), which changes no answer: without it the planner takes the wall for one more
-- way to find rows, counts the brand twice (here, and where the query names it) and expects a row where there are
-- hundreds. So it finds rows as the query says, by the index that the query is made for, and the wall looks at each.
create or replace procedure app.build_wall(t regclass)
language plpgsql set search_path = '' as $$
begin
  execute format('alter table %s enable row level security', t);
  execute format('alter table %s force row level security', t);
  execute format('create policy wall_user on %s as restrictive for all to authenticated '
    'using (coalesce(brand_id = any ((select private.my_brands())::text[]), false)) '
    'with check (brand_id = any ((select private.my_brands())::text[]))', t);
  execute format('create policy wall_system on %s as restrictive for all to brand_system '
    'using (brand_id = (select private.ticket_brand())) '
    'with check (brand_id = (select private.ticket_brand()))', t);
  execute format('create trigger brand_immutable before update on %s '
    'for each row execute function app.tg_brand_immutable()', t);
end $$;

-- The walls that stand already. A brand itself is one row, found by its id: there the users' wall stays as it is.
do $$
declare wall record;
begin
  for wall in
    select p.polrelid::regclass as t, case p.polrelid when 'app.brands'::regclass then 'id' else 'brand_id' end as brand
    from pg_catalog.pg_policy p where p.polname = 'wall_system'
  loop
    execute format('alter policy wall_system on %s using (%I = (select private.ticket_brand())) '
      'with check (%I = (select private.ticket_brand()))', wall.t, wall.brand, wall.brand);
    continue when wall.t in ('app.brands'::regclass, 'app.idempotency_keys'::regclass);
    execute format('alter policy wall_user on %s '
      'using (coalesce(brand_id = any ((select private.my_brands())::text[]), false))', wall.t);
  end loop;
end $$;
alter policy admin_select on audit.events
  using (coalesce(brand_id = any ((select private.my_admin_brands())::text[]), false));

reset role;

-- What a removed member left open cannot be ended with a ticket on their behalf. The dispatcher ends it by this function,
-- which does nothing else: it takes no argument, and gives no other reason than this one.
grant update (status, error, completed_at) on app.lora_training_jobs, app.generations to onbrand_definer;
grant select (brand_id, subject_id, seq), insert (brand_id, seq, job_id, generation_id, kind, data)
  on app.job_events to onbrand_definer;

set role onbrand_definer;

create function private.end_orphaned() returns table (kind text, brand_id text, job_id uuid, provider text,
  provider_job_id text)
language plpgsql volatile security definer set search_path = '' as $$
declare
  gone record;
  why jsonb;
begin
  for gone in
    select j.id, j.brand_id, j.provider, j.provider_job_id from app.lora_training_jobs j
    where j.status in ('pending', 'training') and not exists (
      select 1 from app.brand_users bu where bu.brand_id = j.brand_id and bu.user_id = j.user_id)
    order by j.created_at for update of j skip locked
  loop
    why := jsonb_build_object('code', 'member_removed', 'message',
      'whoever started this job is no longer a member of the brand; a member may retry it in their own name');
    update app.lora_training_jobs j set status = 'failed', error = why, completed_at = now()
      where j.brand_id = gone.brand_id and j.id = gone.id;
    insert into app.job_events (brand_id, job_id, seq, kind, data)
      select gone.brand_id, gone.id, coalesce(max(e.seq), 0) + 1, 'status',
        jsonb_build_object('status', 'failed', 'error', why)
      from app.job_events e where e.brand_id = gone.brand_id and e.subject_id = gone.id;
    perform private.audit_append(gone.brand_id, 'system:' || gone.id, 'job.fail',
      jsonb_build_object('job_id', gone.id, 'code', 'member_removed'));
    return query select 'training'::text, gone.brand_id, gone.id, gone.provider, gone.provider_job_id;
  end loop;
  for gone in
    select g.id, g.brand_id from app.generations g
    where g.status in ('pending', 'running') and not exists (
      select 1 from app.brand_users bu where bu.brand_id = g.brand_id and bu.user_id = g.user_id)
    order by g.created_at for update of g skip locked
  loop
    why := jsonb_build_object('code', 'member_removed', 'message',
      'whoever asked for these pictures is no longer a member of the brand; ask for them again');
    update app.generations g set status = 'failed', error = why, completed_at = now()
      where g.brand_id = gone.brand_id and g.id = gone.id;
    insert into app.job_events (brand_id, generation_id, seq, kind, data)
      select gone.brand_id, gone.id, coalesce(max(e.seq), 0) + 1, 'status',
        jsonb_build_object('status', 'failed', 'error', why)
      from app.job_events e where e.brand_id = gone.brand_id and e.subject_id = gone.id;
    perform private.audit_append(gone.brand_id, 'system:' || gone.id, 'generation.fail',
      jsonb_build_object('generation_id', gone.id, 'code', 'member_removed'));
    return query select 'generation'::text, gone.brand_id, gone.id, null::text, null::text;
  end loop;
end $$;

reset role;
grant execute on function private.end_orphaned() to onbrand_dispatcher;
